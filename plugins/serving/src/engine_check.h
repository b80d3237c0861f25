// Checks an engine against the manifest beside it before TensorRT loads it: a reason to read instead of a crash.
//
// engine_manifest.h is this file with its parts written in, one header for a server: scripts/generate_engine_manifest.py makes it.
// Standard C++17 and nothing else; include it in a server. Errors are values: an empty string is success. The same check in
// Python is mra_export/engine/manifest.py; tests/engine/test_manifest.py holds the two together.
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
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "json.h"
#include "sha256.h"

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
    const std::size_t digits =
        item.find_first_not_of("0123456789") == std::string::npos ? item.size() : item.find_first_not_of("0123456789");
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

inline std::string read_manifest(const std::string& engine, Manifest* manifest) {
  using Kind = detail::Json::Kind;
  constexpr std::streamsize kMaxBytes = 16 << 20;
  const std::string path = engine + ".json";
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return engine + " has no manifest " + path + " beside it. Keep the two together, or build the engine with `mra-export trt`.";
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
    if (const auto* value = field(name, Kind::kString)) {
      if (detail::has_control(value->text))
        return path + ": " + name + "=" + value->text + " holds a control character. Build the engine again.";
      *member = value->text;
    }
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

inline std::string check_engine(const std::string& engine, const Machine& machine, Manifest* manifest) {
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
      return engine + " needs the plugin library " + machine.plugin + ", which does not exist. Copy it, or run `mra-export build`.";
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

}  // namespace detail

// Reads the manifest of an engine: ENGINE.json. The error, in which control characters are escaped, or an empty string.
inline std::string read_manifest(const std::string& engine, Manifest* manifest) {
  return detail::printable(detail::read_manifest(engine, manifest));
}

// Whether this machine can load the engine. The error, or an empty string; `manifest` may be null.
inline std::string check_engine(const std::string& engine, const Machine& machine, Manifest* manifest = nullptr) {
  return detail::printable(detail::check_engine(engine, machine, manifest));
}

}  // namespace mra::serving
