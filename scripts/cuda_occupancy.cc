// Thread blocks that fit a multiprocessor at once, by the calculator of NVIDIA's toolkit. scripts/cuda_static.py compiles and runs it.
//
// Each line of the input is a compute capability (90 for 9.0), threads a block, registers a thread and bytes of dynamic shared memory;
// each line of the output the number of blocks, with all of the shared memory that the L1 cache can give away.
#include <cuda_runtime_api.h>

#include <cstdio>

#include <cuda_occupancy.h>

namespace {

// "Technical specifications per compute capability" of the CUDA programming guide.
struct Device {
  int capability, threads, shared_bytes;  // of a multiprocessor
};
constexpr Device kDevices[] = {{80, 2048, 164 << 10}, {86, 1536, 100 << 10},  {89, 1536, 100 << 10},
                               {90, 2048, 228 << 10}, {100, 2048, 228 << 10}, {120, 1536, 100 << 10}};
constexpr int kReservedBytes = 1024;  // of each block's shared memory
constexpr int kRegisters = 65536;

}  // namespace

int main() {
  int capability, threads, registers, shared_bytes;
  while (std::scanf("%d %d %d %d", &capability, &threads, &registers, &shared_bytes) == 4) {
    const Device* device = nullptr;
    for (const Device& each : kDevices)
      if (each.capability == capability) device = &each;
    if (device == nullptr) {
      std::fprintf(stderr, "cuda_occupancy: no sizes for compute capability %d; add it to kDevices\n", capability);
      return 1;
    }
    cudaOccDeviceProp properties;
    properties.computeMajor = capability / 10;
    properties.computeMinor = capability % 10;
    properties.maxThreadsPerBlock = 1024;
    properties.maxThreadsPerMultiprocessor = device->threads;
    properties.regsPerBlock = kRegisters;
    properties.regsPerMultiprocessor = kRegisters;
    properties.warpSize = 32;
    properties.sharedMemPerBlock = 48 << 10;
    properties.sharedMemPerMultiprocessor = static_cast<std::size_t>(device->shared_bytes);
    properties.sharedMemPerBlockOptin = static_cast<std::size_t>(device->shared_bytes - kReservedBytes);
    properties.reservedSharedMemPerBlock = kReservedBytes;
    properties.numSms = 1;
    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = 1024;
    function.numRegs = registers;
    function.sharedSizeBytes = 0;
    function.partitionedGCConfig = PARTITIONED_GC_OFF;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = properties.sharedMemPerBlockOptin;
    function.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.cacheConfig = CACHE_PREFER_NONE;
    state.carveoutConfig = 100;
    cudaOccResult result;
    const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &properties, &function, &state, threads,
                                                                       static_cast<std::size_t>(shared_bytes));
    if (error != CUDA_OCC_SUCCESS) {
      std::fprintf(stderr, "cuda_occupancy: error %d\n", static_cast<int>(error));
      return 1;
    }
    std::printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
  return 0;
}
