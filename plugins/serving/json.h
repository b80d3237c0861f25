// Reads JSON, and makes what was read fit for a message, in standard C++17 and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mra::serving::detail {

// The length of the UTF-8 sequence at `at`, and its code point; 0 where there is none: no overlong forms, no surrogates, nothing
// past U+10FFFF.
inline std::size_t read_utf8(const std::string& text, std::size_t at, std::uint32_t* code) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const unsigned first = byte(at);
  *code = first;
  if (first < 0x80) return 1;
  const std::size_t more = first >= 0xC2 && first < 0xE0 ? 1 : (first & 0xF0) == 0xE0 ? 2 : first >= 0xF0 && first < 0xF5 ? 3 : 0;
  if (more == 0) return 0;
  *code = first & (0x3FU >> more);
  for (std::size_t i = 1; i <= more; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
    *code = (*code << 6) | (byte(at + i) & 0x3F);
  }
  const bool is_overlong = (more == 2 && *code < 0x800) || (more == 3 && *code < 0x10000);
  return is_overlong || (*code >= 0xD800 && *code < 0xE000) || *code > 0x10FFFF ? 0 : more + 1;
}

// Whether a terminal would do something else than show it: control characters, breaks of lines, marks that turn the direction of
// text, and what is not seen at all.
inline bool is_control(std::uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0xAD || code == 0x61C || code == 0x180E ||
         (code >= 0x200B && code <= 0x200F) || (code >= 0x2028 && code <= 0x202E) || (code >= 0x2060 && code <= 0x206F) ||
         code == 0xFEFF || (code >= 0xFFF9 && code <= 0xFFFB) || (code >= 0xE0000 && code <= 0xE007F);
}

// Whether a text of a manifest holds what no terminal should get; it may have several lines.
inline bool has_control(const std::string& text) {
  std::uint32_t code = 0;
  for (std::size_t at = 0, size = 0; at < text.size(); at += size > 0 ? size : 1) {
    size = read_utf8(text, at, &code);
    if (size > 0 && is_control(code) && code != '\n' && code != '\t') return true;
  }
  return false;
}

// Text for a message: control characters, and bytes that are not UTF-8, as \n, \x1b, \u202e or \U000e0041.
inline std::string printable(const std::string& text) {
  static constexpr const char* kDigits = "0123456789abcdef";
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    std::uint32_t code = 0;
    const std::size_t size = read_utf8(text, at, &code);
    if (size > 0 && !is_control(code)) {
      out.append(text, at, size);
    } else if (size > 0 && (code == '\n' || code == '\t' || code == '\r')) {
      out += code == '\n' ? "\\n" : code == '\t' ? "\\t" : "\\r";
    } else {
      if (size == 0) code = static_cast<unsigned char>(text[at]);
      const int digits = code < 0x100 ? 2 : code < 0x10000 ? 4 : 8;
      out += digits == 2 ? "\\x" : digits == 4 ? "\\u" : "\\U";
      for (int i = digits - 1; i >= 0; --i) out += kDigits[(code >> (4 * i)) & 15];
    }
    at += size > 0 ? size : 1;
  }
  return out;
}

// A JSON value.
struct Json {
  enum class Kind { kNull, kBoolean, kInteger, kNumber, kString, kArray, kObject } kind = Kind::kNull;
  std::string text;                // of a string; of a number, as it stands in the file
  std::int64_t integer = 0;        // of an integer of up to 18 digits; 1 or 0 for true and false
  std::vector<std::string> names;  // of an object's members, in the file's order
  std::vector<Json> items;         // of an array, or the values of `names`

  // The member of an object, null where there is none. Of several with one name it is the last, as for Python.
  const Json* find(const std::string& name) const {
    for (std::size_t i = names.size(); i-- > 0;)
      if (names[i] == name) return &items[i];
    return nullptr;
  }
};

// Reads JSON (RFC 8259).
class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  // False where the text is not one JSON object.
  bool read(Json* object) {
    skip_space();
    if (peek() != '{' || !read_value(0, object)) return false;
    skip_space();
    return at_ == text_.size();
  }

 private:
  static constexpr int kMaxDepth = 64;

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  }
  bool take_word(const char* word) {
    const std::string expected(word);
    if (text_.compare(at_, expected.size(), expected) != 0) return false;
    at_ += expected.size();
    return true;
  }

  bool read_value(int depth, Json* value) {
    skip_space();
    switch (peek()) {
      case '"':
        value->kind = Json::Kind::kString;
        return read_string(&value->text);
      case '{':
      case '[':
        return depth < kMaxDepth && read_container(depth, value);
      case 't':
      case 'f':
        value->kind = Json::Kind::kBoolean;
        value->integer = peek() == 't';
        return take_word(value->integer ? "true" : "false");
      case 'n':
        return take_word("null");
      default:
        return read_number(value);
    }
  }

  bool read_container(int depth, Json* value) {
    const bool is_object = peek() == '{';
    const char end = is_object ? '}' : ']';
    value->kind = is_object ? Json::Kind::kObject : Json::Kind::kArray;
    ++at_;
    skip_space();
    if (take(end)) return true;
    do {
      skip_space();
      if (is_object) {
        value->names.emplace_back();
        if (!read_string(&value->names.back())) return false;
        skip_space();
        if (!take(':')) return false;
      }
      value->items.emplace_back();
      if (!read_value(depth + 1, &value->items.back())) return false;
      skip_space();
    } while (take(','));
    return take(end);
  }

  bool read_digits() {
    const std::size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > start;
  }

  // Integers of up to 18 digits fit into 64 bits; other numbers stay text.
  bool read_number(Json* number) {
    const std::size_t sign = at_;
    const bool is_negative = take('-');
    const std::size_t start = at_;
    if (!read_digits()) return false;
    const std::size_t digits = at_ - start;
    if (digits > 1 && text_[start] == '0') return false;
    bool is_integer = true;
    if (take('.')) {
      is_integer = false;
      if (!read_digits()) return false;
    }
    if (peek() == 'e' || peek() == 'E') {
      is_integer = false;
      ++at_;
      if (!take('+')) take('-');
      if (!read_digits()) return false;
    }
    if (is_integer && digits <= 18) {
      std::int64_t value = 0;
      for (std::size_t i = start; i < start + digits; ++i) value = value * 10 + (text_[i] - '0');
      number->integer = is_negative ? -value : value;
    }
    number->kind = is_integer && digits <= 18 ? Json::Kind::kInteger : Json::Kind::kNumber;
    number->text = text_.substr(sign, at_ - sign);
    return true;
  }

  bool read_hex4(std::uint32_t* value) {
    *value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      std::uint32_t digit = 0;
      if (c >= '0' && c <= '9')
        digit = static_cast<std::uint32_t>(c - '0');
      else if (c >= 'a' && c <= 'f')
        digit = static_cast<std::uint32_t>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F')
        digit = static_cast<std::uint32_t>(c - 'A' + 10);
      else
        return false;
      *value = *value * 16 + digit;
      ++at_;
    }
    return true;
  }

  static void append_utf8(std::uint32_t code, std::string* out) {
    if (code < 0x80) {
      *out += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned kFirst[] = {0, 0xC0, 0xE0, 0xF0};
    *out += static_cast<char>(kFirst[more] | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) *out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
  }

  bool read_string(std::string* out) {
    out->clear();
    if (!take('"')) return false;
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c != '\\') {
        *out += c;
        continue;
      }
      if (at_ >= text_.size()) return false;
      const char escape = text_[at_++];
      static const std::string from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
      const std::size_t index = from.find(escape);
      if (index != std::string::npos) {
        *out += to[index];
        continue;
      }
      std::uint32_t code = 0;
      if (escape != 'u' || !read_hex4(&code)) return false;
      if (code >= 0xD800 && code < 0xDC00) {  // the first half of a pair
        std::uint32_t low = 0;
        if (!take('\\') || !take('u') || !read_hex4(&low) || low < 0xDC00 || low > 0xDFFF) return false;
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      } else if (code >= 0xDC00 && code <= 0xDFFF) {
        return false;
      }
      append_utf8(code, out);
    }
    return false;
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

}  // namespace mra::serving::detail
