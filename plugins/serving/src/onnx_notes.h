// What the exporter noted in an ONNX file: its metadata, read without a runtime and without the weights.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>

namespace mra::serving::detail {

// Walks the fields of a protobuf message in a file, from its position to `end`.
class FieldWalker {
 public:
  FieldWalker(std::ifstream& file, std::uint64_t end) : file_(file), end_(end) {}

  // The number of the next field that has a length, and its end; false at the message's end, or where it is none.
  bool next(std::uint64_t* number, std::uint64_t* end) {
    constexpr std::uint64_t kVarint = 0, kEightBytes = 1, kLength = 2, kFourBytes = 5;  // kinds of fields
    for (std::uint64_t tag = 0, value = 0; at() < end_ && read_varint(&tag);) {
      const std::uint64_t kind = tag & 7, fixed = kind == kEightBytes ? 8 : 4;
      if (kind == kVarint) {
        if (!read_varint(&value)) return false;
      } else if (kind == kEightBytes || kind == kFourBytes) {
        if (fixed > end_ - at()) return false;
        go_to(at() + fixed);
      } else if (kind == kLength && read_varint(&value) && value <= end_ - at()) {
        *number = tag >> 3;
        *end = at() + value;
        return true;
      } else {
        return false;
      }
    }
    return false;
  }

  std::uint64_t at() const { return static_cast<std::uint64_t>(file_.tellg()); }
  void go_to(std::uint64_t place) { file_.seekg(static_cast<std::streamoff>(place)); }

  std::string text(std::uint64_t end) {
    std::string text(static_cast<std::size_t>(end - at()), '\0');
    file_.read(text.data(), static_cast<std::streamsize>(text.size()));
    return text;
  }

 private:
  bool read_varint(std::uint64_t* value) {
    *value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const int byte = file_.get();
      if (byte == std::ifstream::traits_type::eof()) return false;
      *value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return at() <= end_;
    }
    return false;
  }

  std::ifstream& file_;
  std::uint64_t end_;
};

// The entries of `metadata_props` of a ModelProto. Of a file that is none, what stands before the fault: a runtime refuses it.
inline std::map<std::string, std::string> onnx_notes(const std::string& path) {
  constexpr std::uint64_t kMetadata = 14, kKey = 1, kValue = 2, kLongest = 1 << 16;  // numbers of fields; bytes of an entry
  std::map<std::string, std::string> notes;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return notes;
  FieldWalker model(file, static_cast<std::uint64_t>(file.tellg()));
  model.go_to(0);
  for (std::uint64_t number = 0, end = 0; model.next(&number, &end); model.go_to(end)) {
    if (number != kMetadata || end - model.at() > kLongest) continue;
    FieldWalker entry(file, end);
    std::string key, value;
    for (std::uint64_t field = 0, stop = 0; entry.next(&field, &stop); entry.go_to(stop)) {
      if (field == kKey) key = entry.text(stop);
      if (field == kValue) value = entry.text(stop);
    }
    file.clear();
    notes[key] = value;
  }
  return notes;
}

}  // namespace mra::serving::detail
