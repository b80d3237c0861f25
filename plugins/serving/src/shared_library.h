// Says whether a shared library was cut off: dlopen maps it, and a page behind the file's end kills the process (SIGBUS).
#pragma once

#include <elf.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

namespace mra::serving::detail {

// The end of `count` things of `size` bytes from `offset` on; the largest number where there is no such end.
inline std::uint64_t end_of(std::uint64_t offset, std::uint64_t count, std::uint64_t size) {
  std::uint64_t bytes = 0, end = 0;
  const bool is_past = __builtin_mul_overflow(count, size, &bytes) || __builtin_add_overflow(offset, bytes, &end);
  return is_past ? std::numeric_limits<std::uint64_t>::max() : end;
}

// Bytes that a file of this class of ELF must have: its headers, both tables of headers, and every segment that is loaded.
template <typename Header, typename Segment>
std::uint64_t elf_extent(std::ifstream& file, std::uint64_t size) {
  Header header{};
  std::uint64_t extent = sizeof header;
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(&header), sizeof header)) return extent;
  extent = std::max(extent, end_of(header.e_shoff, header.e_shnum, header.e_shentsize));
  extent = std::max(extent, end_of(header.e_phoff, header.e_phnum, sizeof(Segment)));
  if (extent > size || header.e_phentsize != sizeof(Segment)) return extent;
  std::vector<Segment> segments(header.e_phnum);
  file.seekg(static_cast<std::streamoff>(header.e_phoff));
  file.read(reinterpret_cast<char*>(segments.data()), static_cast<std::streamsize>(segments.size() * sizeof(Segment)));
  for (const Segment& segment : segments)
    if (segment.p_type == PT_LOAD) extent = std::max(extent, end_of(segment.p_offset, 1, segment.p_filesz));
  return extent;
}

// Empty where the file may be given to dlopen, which says itself what is wrong with a file that is no library of this machine.
inline std::string cut_off(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff found = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (found < 0) return "";
  const auto size = static_cast<std::uint64_t>(found);
  unsigned char ident[EI_NIDENT] = {};
  file.seekg(0);
  file.read(reinterpret_cast<char*>(ident), sizeof ident);
  file.clear();
  const int native = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? ELFDATA2LSB : ELFDATA2MSB;
  const bool is_elf = std::memcmp(ident, ELFMAG, SELFMAG) == 0 && (ident[EI_CLASS] == ELFCLASS32 || ident[EI_CLASS] == ELFCLASS64);
  if (!is_elf || ident[EI_DATA] != native) return "";
  const std::uint64_t extent = ident[EI_CLASS] == ELFCLASS32 ? elf_extent<Elf32_Ehdr, Elf32_Phdr>(file, size)
                                                             : elf_extent<Elf64_Ehdr, Elf64_Phdr>(file, size);
  if (extent <= size) return "";
  const bool is_known = extent != std::numeric_limits<std::uint64_t>::max();
  return path + " has " + std::to_string(size) + " bytes, and its own headers say " +
         (is_known ? "that it has " + std::to_string(extent) + " at least" : "that it has more than a file can have") +
         ": it was cut off or damaged";
}

}  // namespace mra::serving::detail
