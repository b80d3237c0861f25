// Where a TensorRT library has ILogger::log, which the plugin calls without that library's own headers.
#pragma once

#include <cstdint>

namespace mra::trt {

// The place of ILogger::log in the table of virtual functions, or -1 for a version of which it is not known. Up to TensorRT 10 and
// TensorRT-RTX 1.4 ILogger has no versioned base, and log() is its first function; since then it is the fifth. Only versions that were
// tried are here: a wrong place would make a crash of an error message. The tests hold the headers that they find against it.
//
// `version` is what getInferLibVersion() says: 101401 is TensorRT 10.14.1, 10701 TensorRT-RTX 1.7.1.
constexpr int logger_slot(bool rtx, std::int32_t version) {
  if (rtx) return version / 100 == 107 ? 4 : -1;
  return version >= 100300 && version < 110000 ? 0 : -1;
}

}  // namespace mra::trt
