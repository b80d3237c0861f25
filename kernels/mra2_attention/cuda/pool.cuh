// Launch 1: step 2, the mean query, key and value of every block; the mask as bits; and the counters set to zero.
#pragma once

#include "common/cuda/tile.cuh"
#include "mra2_attention/cuda/problem.cuh"

namespace mra::cuda {

constexpr int kPoolThreads = 96;  // three tensors of 768 half-type channels: exactly three slices

// Block (batch example, block of tokens, slice of columns); a thread owns 16 bytes of one of the three tensors' rows.
template <typename T>
__global__ void __launch_bounds__(kPoolThreads) mra2_pool_kernel(Mra2Problem p, int slices) {
  constexpr int kSize = Vector<T>::kSize;
  const std::int64_t block = blockIdx.x / slices;  // example * nb + block of tokens
  const int slice = static_cast<int>(blockIdx.x % slices);
  const std::int64_t example = block / p.nb;
  const int row = static_cast<int>(block % p.nb);
  const std::int64_t first_token = static_cast<std::int64_t>(row) * kBlockSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;

  const bool token = first_token + lane < p.seq_len && p.mask[example * p.seq_len + first_token + lane] != 0;
  const std::uint32_t bits = __ballot_sync(0xffffffffu, token);

  if (slice == 0) {
    if (threadIdx.x == 0) p.token_bits[block] = bits;
    for (int head = static_cast<int>(threadIdx.x); head < p.num_heads; head += kPoolThreads) {
      const std::int64_t n = example * p.num_heads + head;
      p.row_arrivals[n * p.nb + row] = 0;
      if (row < kArrivals) p.head_arrivals[n * kArrivals + row] = 0;
    }
    if (row == 0) {
      const std::int64_t entries = static_cast<std::int64_t>(p.num_heads) * 256;
      for (std::int64_t i = threadIdx.x; i < entries; i += kPoolThreads) p.first_counts[example * entries + i] = 0;
    }
  }

  const int columns = p.hidden / kSize;
  const int column = slice * kPoolThreads + static_cast<int>(threadIdx.x);
  if (column >= 3 * columns) return;
  const int tensor = column / columns;
  const int channel = (column - tensor * columns) * kSize;
  const void* start = tensor == 0 ? p.query : tensor == 1 ? p.key : p.value;
  const T* source = static_cast<const T*>(start) + (example * p.seq_len + first_token) * p.hidden + channel;

  float sum[kSize] = {};
  constexpr int kInFlight = 8;  // loads before their first use; the plain path has no condition that would keep them apart
  if (bits == 0xffffffffu) {
    for (int first = 0; first < kBlockSize; first += kInFlight) {
      uint4 raw[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        raw[i] = *reinterpret_cast<const uint4*>(source + static_cast<std::int64_t>(first + i) * p.hidden);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) Vector<T>::add(sum, raw[i]);
    }
  } else {
    for (int i = 0; i < kBlockSize; ++i)
      if ((bits >> i & 1u) != 0)
        Vector<T>::add(sum, *reinterpret_cast<const uint4*>(source + static_cast<std::int64_t>(i) * p.hidden));
  }

  const float count = static_cast<float>(__popc(bits)) + kPoolEpsilon;
  const int head = channel / p.head_dim;
  float* pooled = tensor == 0 ? p.pooled_query : tensor == 1 ? p.pooled_key : p.pooled_value;
  float* target = pooled + ((example * p.num_heads + head) * p.nb + row) * p.head_dim + (channel - head * p.head_dim);
#pragma unroll
  for (int i = 0; i < kSize; i += 4)
    *reinterpret_cast<float4*>(target + i) =
        make_float4(sum[i] / count, sum[i + 1] / count, sum[i + 2] / count, sum[i + 3] / count);
}

}  // namespace mra::cuda
