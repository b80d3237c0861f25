// What libmra_tensorrt.so exports: the entry points of IPluginRegistry::loadLibrary, and a description of the build.
#include "mra2_attention_plugin.h"
#include "yoso_attention_plugin.h"

#define MRA_EXPORT extern "C" __attribute__((visibility("default")))
#define MRA_TEXT_(x) #x
#define MRA_TEXT(x) MRA_TEXT_(x)
#define MRA_TENSORRT_VERSION MRA_TEXT(NV_TENSORRT_MAJOR) "." MRA_TEXT(NV_TENSORRT_MINOR)

// Two creators for each operator: TensorRT's parsers ask for the namespace "" or for the node's domain.
MRA_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) noexcept {
  using mra::trt::AttentionCreator;
  static AttentionCreator mra2_plain(mra::trt::kMra2Attention, "");
  static AttentionCreator mra2_domain(mra::trt::kMra2Attention, mra::kOpDomain);
  static AttentionCreator yoso_plain(mra::trt::kYosoAttention, "");
  static AttentionCreator yoso_domain(mra::trt::kYosoAttention, mra::kOpDomain);
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&mra2_plain, &mra2_domain, &yoso_plain, &yoso_domain};
  count = 4;
  return creators;
}

MRA_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept { mra::trt::set_logger_finder(finder); }

// JSON, for `mra-export doctor`: what this file was built with, and for which GPU architectures.
MRA_EXPORT const char* mraBuildInfo() noexcept {
  return "{\"plugin_version\": \"1\", \"tensorrt_headers\": \"" MRA_TENSORRT_VERSION
         "\", \"cuda_runtime\": " MRA_TEXT(CUDART_VERSION) ", \"architectures\": \"" MRA_CUDA_ARCHITECTURES "\"}";
}
