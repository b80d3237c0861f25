// Checks an engine against the manifest beside it before TensorRT loads it: a reason to read instead of a crash.
//
// Standard C++17 and nothing else; include it in a server. Errors are values: an empty string is success. The same check in
// Python is mra_export/engine/manifest.py; tests/test_manifest.py holds the two together.
//
//   mra::serving::Machine machine;
//   machine.backend = "tensorrt";
//   machine.backend_version = mra::serving::version_text(getInferLibVersion());
//   machine.compute_capability = "9.0";  // major.minor of cudaGetDeviceProperties
//   machine.plugin = "/opt/model/libmra_tensorrt.so";
//   std::string error = mra::serving::check_engine("/opt/model/model.engine", machine);
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace mra::serving {

// What loads the engine. An empty string leaves that part of the check out.
struct Machine {
  std::string backend;             // "tensorrt" or "rtx"
  std::string backend_version;     // "10.14.1", more numbers may follow
  std::string compute_capability;  // of the GPU: "9.0"
  std::string plugin;              // path of libmra_tensorrt.so
};

// The fields of ENGINE.json that a server needs; mra_export/engine/manifest.py describes them.
struct Manifest {
  std::int64_t format = 0;
  std::string mra_export;
  std::string backend;
  std::string backend_version;
  bool version_compatible = false;
  std::string compute_capability;
  bool hardware_compatible = false;
  std::string gpu;
  std::int64_t engine_bytes = 0;
  std::string engine_sha256;
  std::string plugin_name;  // empty where the engine needs no plugin, as are the strings of the plugin below
  std::string plugin_version;
  std::string plugin_sha256;
  bool plugin_embedded = false;
  std::string plugin_architectures;
  std::string precision;
  bool weights_stripped = false;
};

constexpr std::int64_t kManifestFormat = 1;
constexpr std::array<const char*, 2> kPluginNames = {"Mra2Attention", "YosoAttention"};

// "10.14.1" from getInferLibVersion(), which is major * 10000 + minor * 100 + patch.
inline std::string version_text(std::int32_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

namespace detail {

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
      if (c >= '0' && c <= '9') digit = static_cast<std::uint32_t>(c - '0');
      else if (c >= 'a' && c <= 'f') digit = static_cast<std::uint32_t>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') digit = static_cast<std::uint32_t>(c - 'A' + 10);
      else return false;
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

// SHA-256 (FIPS 180-4).
class Sha256 {
 public:
  void update(const char* data, std::size_t size) {
    total_ += size;
    while (size > 0) {
      const std::size_t taken = size < block_.size() - filled_ ? size : block_.size() - filled_;
      std::memcpy(block_.data() + filled_, data, taken);
      filled_ += taken;
      data += taken;
      size -= taken;
      if (filled_ == block_.size()) compress();
    }
  }

  std::string hex() {
    const std::uint64_t bits = total_ * 8;
    const char one = static_cast<char>(0x80), zero = 0;
    update(&one, 1);
    while (filled_ != 56) update(&zero, 1);
    for (int i = 7; i >= 0; --i) {
      const char byte = static_cast<char>(bits >> (8 * i));
      update(&byte, 1);
    }
    std::string text;
    for (const std::uint32_t word : state_)
      for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[(word >> shift) & 15];
    return text;
  }

 private:
  static std::uint32_t rotate(std::uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

  void compress() {
    static constexpr std::uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
        0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
        0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
        0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
        0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
        0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    std::uint32_t w[64];
    for (std::size_t i = 0; i < 16; ++i)
      w[i] = std::uint32_t{block_[4 * i]} << 24 | std::uint32_t{block_[4 * i + 1]} << 16 |
             std::uint32_t{block_[4 * i + 2]} << 8 | block_[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      const std::uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const std::uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    std::array<std::uint32_t, 8> v = state_;
    for (int i = 0; i < 64; ++i) {
      const std::uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
      const std::uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
      const std::uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
      const std::uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
      v = {t1 + t2, v[0], v[1], v[2], v[3] + t1, v[4], v[5], v[6]};
    }
    for (std::size_t i = 0; i < 8; ++i) state_[i] += v[i];
    filled_ = 0;
  }

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> block_{};
  std::size_t filled_ = 0;
  std::uint64_t total_ = 0;
};

// The size and SHA-256 of a file; false if it cannot be read.
inline bool digest_file(const std::string& path, std::int64_t* size, std::string* sha256) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return false;
  Sha256 digest;
  std::vector<char> buffer(1 << 16);
  *size = 0;
  do {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    digest.update(buffer.data(), static_cast<std::size_t>(file.gcount()));
    *size += file.gcount();
  } while (file);
  *sha256 = digest.hex();
  return file.eof();
}

// The numbers of "1.7.1.116"; empty for what is no version.
inline std::vector<std::int64_t> numbers_of(const std::string& version) {
  std::vector<std::int64_t> numbers;
  for (std::size_t at = 0; at < version.size();) {
    std::int64_t value = 0;
    const std::size_t start = at;
    for (; at < version.size() && version[at] >= '0' && version[at] <= '9' && at - start < 9; ++at)
      value = value * 10 + (version[at] - '0');
    if (at == start) break;
    numbers.push_back(value);
    if (at < version.size() && version[at] != '.') break;
    ++at;
  }
  return numbers;
}

inline bool version_fits(const Manifest& manifest, const std::string& version) {
  std::vector<std::int64_t> built = numbers_of(manifest.backend_version), here = numbers_of(version);
  if (built.empty() || here.empty()) return false;
  std::size_t common = built.size() < here.size() ? built.size() : here.size();
  if (manifest.version_compatible) {
    built.resize(built.size() < 3 ? built.size() : 3);
    here.resize(here.size() < 3 ? here.size() : 3);
    return here >= built;
  }
  built.resize(common);
  here.resize(common);
  return common >= 3 && built == here;
}

inline bool gpu_fits(const Manifest& manifest, const std::string& compute_capability) {
  const std::vector<std::int64_t> built = numbers_of(manifest.compute_capability), here = numbers_of(compute_capability);
  return here.size() == 2 && (manifest.hardware_compatible ? built <= here : built == here);
}

// Whether code compiled for CMake's list of `architectures` runs on a GPU: machine code of the same major number and no larger
// minor one, or PTX of an older architecture.
inline bool covers(const std::string& architectures, const std::string& compute_capability) {
  const std::vector<std::int64_t> gpu = numbers_of(compute_capability);
  if (gpu.size() != 2) return false;
  for (std::size_t start = 0; start <= architectures.size();) {
    std::size_t end = architectures.find(',', start);
    if (end == std::string::npos) end = architectures.size();
    const std::string item = architectures.substr(start, end - start);
    start = end + 1;
    const std::size_t digits = item.find_first_not_of("0123456789") == std::string::npos
                                   ? item.size()
                                   : item.find_first_not_of("0123456789");
    const std::string kind = item.substr(digits);
    if (digits < 2 || digits > 6 || (!kind.empty() && kind != "-real" && kind != "-virtual")) continue;
    const std::int64_t number = std::stoll(item.substr(0, digits));
    const std::int64_t major = number / 10, minor = number % 10;
    const bool has_code = kind != "-virtual" && major == gpu[0] && minor <= gpu[1];
    const bool has_ptx = kind != "-real" && (major < gpu[0] || (major == gpu[0] && minor <= gpu[1]));
    if (has_code || has_ptx) return true;
  }
  return false;
}

inline std::string title(const std::string& backend) {
  return backend == "rtx" ? "TensorRT-RTX" : backend == "tensorrt" ? "TensorRT" : backend;
}

}  // namespace detail

// Reads the manifest of an engine: ENGINE.json. The error, or an empty string.
inline std::string read_manifest(const std::string& engine, Manifest* manifest) {
  using Kind = detail::Json::Kind;
  constexpr std::streamsize kMaxBytes = 16 << 20;
  const std::string path = engine + ".json";
  std::ifstream file(path, std::ios::binary);
  if (!file) return engine + " has no manifest " + path + " beside it. Keep the two together, or build the engine with `mra-export trt`.";
  std::string text(static_cast<std::size_t>(kMaxBytes) + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.gcount() > kMaxBytes) return path + " is too large for a manifest. Build the engine again.";
  text.resize(static_cast<std::size_t>(file.gcount()));
  detail::Json fields;
  if (!detail::JsonReader(text).read(&fields)) return path + " is not a readable manifest. Build the engine again.";

  Manifest found;
  std::string missing;
  const auto field = [&](const char* name, Kind kind) -> const detail::Json* {
    const detail::Json* value = fields.find(name);
    if (value != nullptr && value->kind == kind) return value;
    if (missing.empty()) missing = name;
    return nullptr;
  };
  if (const auto* format = field("format", Kind::kInteger)) found.format = format->integer;
  if (!missing.empty()) return path + " is not a manifest of an engine: it has no format. Build the engine with `mra-export trt`.";
  if (found.format != kManifestFormat)
    return path + " has format " + std::to_string(found.format) + ", this program reads " + std::to_string(kManifestFormat) +
           ". Build the engine again.";
  const std::pair<const char*, std::string*> strings[] = {{"mra_export", &found.mra_export},
                                                          {"backend", &found.backend},
                                                          {"backend_version", &found.backend_version},
                                                          {"compute_capability", &found.compute_capability},
                                                          {"gpu", &found.gpu},
                                                          {"engine_sha256", &found.engine_sha256},
                                                          {"plugin_name", &found.plugin_name},
                                                          {"plugin_version", &found.plugin_version},
                                                          {"plugin_sha256", &found.plugin_sha256},
                                                          {"plugin_architectures", &found.plugin_architectures},
                                                          {"precision", &found.precision}};
  for (const auto& [name, member] : strings)
    if (const auto* value = field(name, Kind::kString)) *member = value->text;
  const std::pair<const char*, bool*> booleans[] = {{"version_compatible", &found.version_compatible},
                                                    {"hardware_compatible", &found.hardware_compatible},
                                                    {"plugin_embedded", &found.plugin_embedded},
                                                    {"weights_stripped", &found.weights_stripped}};
  for (const auto& [name, member] : booleans)
    if (const auto* value = field(name, Kind::kBoolean)) *member = value->integer != 0;
  if (const auto* value = field("engine_bytes", Kind::kInteger)) found.engine_bytes = value->integer;
  if (!missing.empty()) return path + " lacks " + missing + ", or has it in another type. Build the engine again.";
  *manifest = found;
  return "";
}

// Whether this machine can load the engine. The error, or an empty string; `manifest` may be null.
inline std::string check_engine(const std::string& engine, const Machine& machine, Manifest* manifest = nullptr) {
  if (!std::ifstream(engine, std::ios::binary)) return engine + " does not exist or cannot be read.";
  Manifest found;
  if (std::string error = read_manifest(engine, &found); !error.empty()) return error;
  std::int64_t size = 0;
  std::string sha256;
  if (!detail::digest_file(engine, &size, &sha256)) return engine + " cannot be read.";
  if (size != found.engine_bytes)
    return engine + " has " + std::to_string(size) + " bytes, its manifest says " + std::to_string(found.engine_bytes) +
           ": it was cut off or replaced. Copy it again, or build it again.";
  if (sha256 != found.engine_sha256)
    return engine + " is not the file that its manifest describes: the SHA-256 differs. Copy it again, or build it again.";
  if (!machine.backend.empty() && machine.backend != found.backend)
    return engine + " was built by " + detail::title(found.backend) + ", which " + detail::title(machine.backend) +
           " cannot load. Build it with `mra-export trt --backend " + machine.backend + "`.";
  if (!machine.backend_version.empty() && !detail::version_fits(found, machine.backend_version))
    return engine + " needs " + detail::title(found.backend) + " " + found.backend_version + " " +
           (found.version_compatible ? "or newer" : "exactly") + "; this is " + machine.backend_version +
           ". Build the engine again with the version that runs it.";
  if (!machine.compute_capability.empty()) {
    if (!detail::gpu_fits(found, machine.compute_capability))
      return engine + " needs a GPU of compute capability " + found.compute_capability + " " +
             (found.hardware_compatible ? "or newer" : "exactly") + " (built: " + found.gpu + "); this one has " +
             machine.compute_capability + ". Build the engine on this machine, or with --hardware-compatible.";
    if (!found.plugin_architectures.empty() && !detail::covers(found.plugin_architectures, machine.compute_capability))
      return "The plugin of " + engine + " was compiled for the GPU architectures " + found.plugin_architectures +
             "; this GPU has compute capability " + machine.compute_capability +
             ". Run `mra-export build` here and build the engine again.";
  }
  if (!machine.plugin.empty() && !found.plugin_name.empty() && !found.plugin_embedded) {
    if (!detail::digest_file(machine.plugin, &size, &sha256))
      return engine + " needs the plugin library " + machine.plugin +
             ", which does not exist. Copy it, or run `mra-export build`.";
    if (sha256 != found.plugin_sha256)
      return machine.plugin + " is not the plugin that " + engine +
             " was built with: the SHA-256 differs. Copy the library that was there at the build, or build the engine again.";
  }
  std::string known;
  bool is_known = found.plugin_name.empty();
  for (const char* name : kPluginNames) {
    is_known = is_known || found.plugin_name == name;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  if (!is_known) return engine + " needs the plugin " + found.plugin_name + "; mra-export has " + known + ".";
  if (manifest != nullptr) *manifest = found;
  return "";
}

}  // namespace mra::serving
