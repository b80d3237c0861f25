// Prints, for each kernel of half types whose blocks shared memory limits, how many blocks an H100's multiprocessor has memory for by NVIDIA's
// occupancy calculator, and how many its launch bounds claim.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include <cuda_occupancy.h>

#include "mra2_attention/cuda/dense.cuh"
#include "mra2_attention/cuda/mma.cuh"

namespace {

int resident_blocks(int threads, std::size_t shared_bytes) {
  cudaOccDeviceProp device;
  device.computeMajor = 9;
  device.computeMinor = 0;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = 2048;
  device.regsPerBlock = 65536;
  device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 49152;
  device.sharedMemPerMultiprocessor = 233472;
  device.numSms = 132;
  device.sharedMemPerBlockOptin = 232448;
  device.reservedSharedMemPerBlock = 1024;
  cudaOccFuncAttributes function;
  function.maxThreadsPerBlock = threads;
  function.numRegs = 32;  // the compiler keeps to the launch bounds: their claim is what shared memory has to allow
  function.sharedSizeBytes = 0;
  function.partitionedGCConfig = PARTITIONED_GC_OFF;
  function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  function.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin;
  function.numBlockBarriers = 1;
  cudaOccDeviceState state;
  state.cacheConfig = CACHE_PREFER_NONE;
  state.carveoutConfig = 100;
  cudaOccResult result;
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, threads, shared_bytes) != CUDA_OCC_SUCCESS)
    return -1;
  return result.activeBlocksPerMultiprocessor;
}

template <int kDim>
void show() {
  using Sparse = mra::cuda::Mra2MmaShape<kDim>;
  std::printf("selected %d %d %d\n", kDim, resident_blocks(mra::cuda::kMra2MmaThreads, Sparse::kSharedBytes), Sparse::kMinBlocks);
  using Dense = mra::cuda::Mra2DenseMmaShape<kDim>;
  std::printf("dense %d %d %d\n", kDim, resident_blocks(Dense::kThreads, Dense::kSharedBytes), Dense::kMinBlocks);
}

}  // namespace

int main() {
  show<32>();
  show<64>();
  show<128>();
  show<256>();
  return 0;
}
