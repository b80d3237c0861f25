// What a cudaError_t does not say of itself, for the libraries that pass it on.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>

namespace mra::cuda {

// A sentence to put after the error's own text, from a space on; empty for most errors. The driver may be too old for the CUDA runtime
// that is linked in here, although what loaded this library runs: that has a runtime of its own.
class Explanation {
 public:
  explicit Explanation(cudaError_t error) {
    if (error != cudaErrorInsufficientDriver) return;
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
      std::snprintf(text_, sizeof(text_), " There is no NVIDIA driver here.");
    else
      std::snprintf(
          text_, sizeof(text_),
          " The driver serves CUDA %d.%d, this library needs CUDA %d: install a newer driver, or compile the library with "
          "the CUDA toolkit of that driver.",
          driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000);
  }
  const char* text() const { return text_; }

 private:
  char text_[192] = "";
};

}  // namespace mra::cuda
