// The functions of the CUDA runtime that the plugins call themselves, for their builds on the host. MRA_HOST_DRIVER is what the driver
// serves, as in 12040; unset or 0: there is none.
#include <cuda_runtime_api.h>

#include <cstdlib>

const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "error";
}
const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "cudaErrorInvalidValue" : "error";
}
cudaError_t CUDARTAPI cudaDriverGetVersion(int* version) {
  const char* named = std::getenv("MRA_HOST_DRIVER");
  *version = named != nullptr ? std::atoi(named) : 0;
  return cudaSuccess;
}
