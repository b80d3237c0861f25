// Registers the creators where the library is only opened, as Triton's `plugins=` opens it: with MRA_TENSORRT_REGISTER=1 in the
// environment. Everybody else calls IPluginRegistry::loadLibrary, which registers them itself, and twice would be an error.
#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "attention_plugin.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) noexcept;

namespace {

int find_tensorrt(dl_phdr_info* info, std::size_t, void* data) {
  const char* slash = info->dlpi_name != nullptr ? std::strrchr(info->dlpi_name, '/') : nullptr;
  if (slash == nullptr) return 0;
  for (const char* name : {"/libnvinfer.so", "/libtensorrt_rtx.so"})
    if (std::strncmp(slash, name, std::strlen(name)) == 0) {
      *static_cast<std::string*>(data) = info->dlpi_name;
      return 1;
    }
  return 0;
}

// IPluginRegistry::registerCreator(IPluginCreatorInterface&, name space). TensorRT 11 dropped the deprecated functions before it, so its
// place depends on the library that is loaded, and the headers of our own build know only one of the two.
constexpr int kRegisterCreator10 = 12;
constexpr int kRegisterCreator11 = 8;

bool register_creators(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return false;
  auto* get_registry = reinterpret_cast<void* (*)()>(dlsym(handle, "getPluginRegistry"));
  auto* get_version = reinterpret_cast<std::int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
  dlclose(handle);  // it stays loaded for whoever loaded it
  void* registry = get_registry != nullptr && get_version != nullptr ? get_registry() : nullptr;
  if (registry == nullptr) return false;
  const bool rtx = path.find("/libtensorrt_rtx.so") != std::string::npos;
  const int place = get_version() >= (rtx ? 10500 : 110000) ? kRegisterCreator11 : kRegisterCreator10;
  using Register = bool (*)(void*, nvinfer1::IPluginCreatorInterface*, const char*);
  const Register function = (*reinterpret_cast<const Register* const*>(registry))[place];
  std::int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
  bool done = true;
  for (std::int32_t i = 0; i < count; ++i)
    done &= function(registry, creators[i], static_cast<mra::trt::AttentionCreator*>(creators[i])->getPluginNamespace());
  return done;
}

__attribute__((constructor)) void register_where_asked() {
  const char* asked = std::getenv("MRA_TENSORRT_REGISTER");
  if (asked == nullptr || std::strcmp(asked, "1") != 0) return;
  std::string path;
  dl_iterate_phdr(find_tensorrt, &path);
  if (path.empty())
    std::fprintf(stderr,
                 "libmra_tensorrt.so: MRA_TENSORRT_REGISTER=1, but no TensorRT is loaded yet. Give it to Triton as a backend "
                 "configuration, tensorrt,plugins=..., and not with LD_PRELOAD.\n");
  else if (!register_creators(path))
    std::fprintf(stderr, "libmra_tensorrt.so: %s did not take the plugin.\n", path.c_str());
}

}  // namespace
