// How the thread block of several that finishes last learns that it is the last, and sees what the others wrote.
#pragma once

#include "common/cuda/device.cuh"

namespace mra::cuda {

// True in every thread of the block that arrives last of `expected`; what the others wrote before is then visible to it, read past the
// L1 cache. One thread's fence speaks for its block, since barriers stand between it and the others: the fences of all would empty
// the L1 cache under the neighbours as often.
__device__ __forceinline__ bool arrives_last(std::uint32_t* counter, std::uint32_t expected, std::uint32_t* shared_flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *shared_flag = atomicAdd(counter, 1u) + 1u == expected;
    __threadfence();
  }
  __syncthreads();
  return *shared_flag != 0;
}

}  // namespace mra::cuda
