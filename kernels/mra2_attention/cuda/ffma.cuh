// Launch 3 for float32: attention over the selected blocks in plain float32, four warps of 8 query rows per chunk.
#pragma once

#include "mra2_attention/cuda/softmax.cuh"

namespace mra::cuda {

template <int kDim>
struct Mra2FfmaShape {
  static constexpr int kKeyStride = kDim + 4;  // a lane reads its own key row: 16 bytes of padding against bank conflicts
  static constexpr std::size_t kSharedBytes = 16 + (2 * kBlockSize * kDim + kBlockSize * kKeyStride) * sizeof(float);
  static_assert(kSharedBytes <= 99 * 1024, "the least that a thread block may have from compute capability 8.0 on");
};

template <int kDim>
__global__ void __launch_bounds__(kFfmaThreads) mra2_ffma_kernel(Mra2Problem p) {
  using Shape = Mra2FfmaShape<kDim>;
  using Exponent = NaturalExponent;
  constexpr int kOwn = kDim / kWarp;  // channels per lane: lane, lane + 32, ...
  std::uint32_t* shared_flag = reinterpret_cast<std::uint32_t*>(dynamic_shared());
  float* query_tile = reinterpret_cast<float*>(dynamic_shared() + 16);  // [32, kDim]
  float* value_tile = query_tile + kBlockSize * kDim;                   // [32, kDim]
  float* key_tile = value_tile + kBlockSize * kDim;                     // [32, kKeyStride]
  float* weights = key_tile;                                            // [32 queries, 32 keys], once the keys are used up

  ChunkWork work;
  if (!work.find(p)) return;
  const int length = work.chunk.length;
  const float* query = static_cast<const float*>(p.query) + work.origin;
  const float* key = static_cast<const float*>(p.key) + work.origin;
  const float* value = static_cast<const float*>(p.value) + work.origin;
  const std::uint32_t query_bits = work.chunk.bits;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row0 = static_cast<int>(threadIdx.x) / kWarp * kFfmaRows;

  const auto load = [&](int tile) {
    const std::uint16_t entry = work.list[tile];
    const int block = entry & kBlockNumber;
    const std::uint32_t bits = work.bits_of(entry);
    load_tile<float, kDim, Shape::kKeyStride, kFfmaThreads>(key_tile, key, block, bits, p);
    copy_async_commit();
    load_tile<float, kDim, kDim, kFfmaThreads>(value_tile, value, block, bits, p);
    copy_async_commit();
  };
  load_tile<float, kDim, kDim, kFfmaThreads>(query_tile, query, work.chunk.row, query_bits, p);
  if (length > 0)
    load(0);
  else
    copy_async_commit();

  float acc[kFfmaRows][kOwn] = {};
  float max[kFfmaRows];
  bool padded = false;
  float weight[kFfmaRows] = {};  // of this lane's keys; summed over the lanes at the end
#pragma unroll
  for (int r = 0; r < kFfmaRows; ++r) max[r] = kLowest;

  for (int tile = 0; tile < length; ++tile) {
    copy_async_wait<1>();
    __syncthreads();
    const std::uint32_t key_bits = work.bits_of(work.list[tile]);
    const bool is_token = (key_bits >> lane & 1u) != 0;
    padded |= key_bits != 0xffffffffu;

    float logits[kFfmaRows] = {};  // of key `lane`
#pragma unroll 4
    for (int channel = 0; channel < kDim; channel += 4) {
      const float4 k = *reinterpret_cast<const float4*>(key_tile + lane * Shape::kKeyStride + channel);
#pragma unroll
      for (int r = 0; r < kFfmaRows; ++r) {
        const float4 q = *reinterpret_cast<const float4*>(query_tile + (row0 + r) * kDim + channel);
        logits[r] = fmaf(q.x, k.x, logits[r]);
        logits[r] = fmaf(q.y, k.y, logits[r]);
        logits[r] = fmaf(q.z, k.z, logits[r]);
        logits[r] = fmaf(q.w, k.w, logits[r]);
      }
    }
    copy_async_wait<0>();
    __syncthreads();  // the values have arrived, and the keys are used up
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r) {
      const float logit = is_token ? logits[r] * p.scale : kLowest;
      float new_max = logit;
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffffu, new_max, offset));
      new_max = fmaxf(new_max, max[r]);
      const float factor = Exponent::exp(max[r] - new_max);
      const float e = is_token ? Exponent::exp(logit - new_max) : 0.0f;
      max[r] = new_max;
      weight[r] = weight[r] * factor + e;
      weights[(row0 + r) * kWarp + lane] = e;
#pragma unroll
      for (int c = 0; c < kOwn; ++c) acc[r][c] *= factor;
    }
    __syncwarp();
#pragma unroll 2
    for (int j = 0; j < kBlockSize; j += 4) {
      float v[4][kOwn];
#pragma unroll
      for (int jj = 0; jj < 4; ++jj)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) v[jj][c] = value_tile[(j + jj) * kDim + lane + c * kWarp];
#pragma unroll
      for (int r = 0; r < kFfmaRows; ++r) {
        const float4 w = *reinterpret_cast<const float4*>(weights + (row0 + r) * kWarp + j);
#pragma unroll
        for (int c = 0; c < kOwn; ++c) {
          acc[r][c] = fmaf(w.x, v[0][c], acc[r][c]);
          acc[r][c] = fmaf(w.y, v[1][c], acc[r][c]);
          acc[r][c] = fmaf(w.z, v[2][c], acc[r][c]);
          acc[r][c] = fmaf(w.w, v[3][c], acc[r][c]);
        }
      }
    }
    __syncthreads();
    if (tile + 1 < length) load(tile + 1);
  }
  copy_async_wait<0>();

  const std::int64_t row = work.head * p.nb + work.chunk.row;
#pragma unroll
  for (int r = 0; r < kFfmaRows; ++r)
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) weight[r] += __shfl_xor_sync(0xffffffffu, weight[r], offset);

  if (work.chunk.parts > 1) {
    const std::int64_t slot = work.slot(p);
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r) {
      const std::int64_t at = slot * kBlockSize + row0 + r;
      if (lane == 0) {
        p.partial_max[at] = max[r];
        p.partial_weight[at] = weight[r];
      }
      if (threadIdx.x == 0) p.partial_padded[slot] = padded;
#pragma unroll
      for (int c = 0; c < kOwn; ++c)
        if (lane + c * kWarp < p.head_dim) p.partial_sum[at * p.head_dim + lane + c * kWarp] = acc[r][c];
    }
    combine_chunks<float, Exponent, kFfmaThreads>(p, work, shared_flag);
    return;
  }

  const float row_max = p.row_max[row];
  const float low_weight = p.sparse ? 0.0f : p.low_weight[row];
  const std::int64_t first_token = static_cast<std::int64_t>(work.chunk.row) * kBlockSize;
  float* context = static_cast<float*>(p.context) + work.origin;
#pragma unroll
  for (int r = 0; r < kFfmaRows; ++r) {
    if (first_token + row0 + r >= p.seq_len) continue;
    const bool is_token = (query_bits >> (row0 + r) & 1u) != 0;
    const FinalFactors f = final_factors<Exponent>(p, row_max, low_weight, max[r], weight[r], padded, length == 0);
#pragma unroll
    for (int c = 0; c < kOwn; ++c) {
      const int channel = lane + c * kWarp;
      if (channel >= p.head_dim) continue;
      const float low = p.sparse ? 0.0f : p.low_sum[row * p.head_dim + channel];
      context[(first_token + row0 + r) * p.hidden + channel] = is_token ? acc[r][c] * f.high + low * f.low : 0.0f;
    }
  }
}

}  // namespace mra::cuda
