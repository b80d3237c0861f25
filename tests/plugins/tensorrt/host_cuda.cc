// The two functions of the CUDA runtime that the plugin calls itself, for its build on the host.
#include <cuda_runtime_api.h>

const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "error";
}
const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "cudaErrorInvalidValue" : "error";
}
