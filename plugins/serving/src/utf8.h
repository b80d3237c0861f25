// UTF-8: whether bytes are, and one code point after the other of what is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mra::serving::detail {

// The first byte at which a text is not UTF-8, its size where it is: no overlong forms, no surrogates, nothing past U+10FFFF.
inline std::size_t end_of_utf8(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  for (std::size_t at = 0; at < text.size();) {
    const unsigned first = byte(at);
    if (first < 0x80) {
      ++at;
      continue;
    }
    const std::size_t more = first >= 0xC2 && first < 0xE0 ? 1 : (first & 0xF0) == 0xE0 ? 2 : first >= 0xF0 && first < 0xF5 ? 3 : 0;
    if (more == 0) return at;
    std::uint32_t code = first & (0x3FU >> more);
    for (std::size_t i = 1; i <= more; ++i) {
      if ((byte(at + i) & 0xC0) != 0x80) return at;
      code = code << 6 | (byte(at + i) & 0x3F);
    }
    const bool is_overlong = (more == 2 && code < 0x800) || (more == 3 && code < 0x10000);
    if (is_overlong || (code >= 0xD800 && code < 0xE000) || code > 0x10FFFF) return at;
    at += more + 1;
  }
  return text.size();
}

// The code point at `at` of a text that is UTF-8; moves behind it.
inline std::uint32_t next_code(std::string_view text, std::size_t* at) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const std::uint32_t first = byte(*at);
  if (first < 0x80) {
    ++*at;
    return first;
  }
  const std::size_t more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
  std::uint32_t code = first & (0x3FU >> more);
  for (std::size_t i = 1; i <= more; ++i) code = code << 6 | (byte(*at + i) & 0x3F);
  *at += more + 1;
  return code;
}

inline void append_utf8(std::uint32_t code, std::string* out) {
  if (code < 0x80) {
    *out += static_cast<char>(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  static constexpr unsigned kFirst[] = {0, 0xC0, 0xE0, 0xF0};
  *out += static_cast<char>(kFirst[more] | (code >> (6 * more)));
  for (int i = more - 1; i >= 0; --i) *out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
}

}  // namespace mra::serving::detail
