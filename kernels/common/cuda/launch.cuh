// What every operator's launch code shares: grids that may be too large, and pointers that may be of no use.
#pragma once

#include "common/call.h"
#include "common/cuda/device.cuh"

namespace mra::cuda {

// Launches `kernel` on `blocks` thread blocks, or says that there are too many for a grid.
template <typename... Parameters>
cudaError_t launch_checked(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared_bytes,
                           cudaStream_t stream, std::common_type_t<Parameters>... arguments) {
  if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
  return launch(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, stream, arguments...);
}

// The same for a kernel whose blocks shared memory limits.
template <typename... Parameters>
cudaError_t launch_in_shared(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared_bytes,
                             cudaStream_t stream, std::common_type_t<Parameters>... arguments) {
  const cudaError_t error = prefer_shared_memory(kernel);
  if (error != cudaSuccess) return error;
  return launch_checked(kernel, blocks, threads, shared_bytes, stream, arguments...);
}

// Loads kernels until one cannot be.
template <typename... Kernels>
cudaError_t load_kernels(Kernels... kernels) {
  cudaError_t error = cudaSuccess;
  ((error == cudaSuccess ? void(error = load(kernels)) : void()), ...);
  return error;
}

inline bool usable(const void* pointer) {
  return pointer != nullptr && reinterpret_cast<std::uintptr_t>(pointer) % kCudaAlignment == 0;
}

}  // namespace mra::cuda
