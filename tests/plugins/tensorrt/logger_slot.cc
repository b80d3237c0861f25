// Prints where these headers have ILogger::log, and what the plugin knows of their version and of some others.
#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "logger_slot.h"

#if defined(TRT_MAJOR_RTX)
constexpr bool kRtx = true;
#else
constexpr bool kRtx = false;
#endif

int main() {
  // A pointer to a virtual function is 1 + its offset in the table, in the C++ ABI of Linux.
  const auto log = &nvinfer1::ILogger::log;
  std::ptrdiff_t parts[2];
  static_assert(sizeof(log) == sizeof(parts));
  std::memcpy(parts, &log, sizeof(parts));
  const int place = static_cast<int>((parts[0] - 1) / static_cast<std::ptrdiff_t>(sizeof(void*)));
  const int version = NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
  std::printf("%s %d %d %d\n", kRtx ? "rtx" : "tensorrt", version, place, mra::trt::logger_slot(kRtx, version));
  for (const int other : {80600, 100300, 101401, 110000}) std::printf("%d ", mra::trt::logger_slot(false, other));
  for (const int other : {10000, 10701, 10800, 20000}) std::printf("%d ", mra::trt::logger_slot(true, other));
  return 0;
}
