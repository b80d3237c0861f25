// The attention of one warp's 8 query rows to tiles of 32 keys in plain float32 (steps 8 to 12), as all kernels for float32 have it.
#pragma once

#include "mra2_attention/cuda/softmax.cuh"

namespace mra::cuda {

template <int kDim>
struct Mra2FfmaShape {
  static constexpr int kKeyStride = kDim + 4;  // a lane reads its own key row: 16 bytes of padding against bank conflicts
  static constexpr std::size_t kSharedBytes = 16 + (2 * kBlockSize * kDim + kBlockSize * kKeyStride) * sizeof(float);
  static_assert(kSharedBytes <= 99 * 1024, "the least that a thread block may have from compute capability 8.0 on");
};

// A thread block's shared memory after the first 16 bytes, and this warp's rows of it. Lane i has key i of a tile, and of the result
// channels i, i + 32, ...
template <int kDim>
struct FfmaRows {
  using Shape = Mra2FfmaShape<kDim>;
  using Exponent = NaturalExponent;
  static constexpr int kOwn = kDim / kWarp;  // channels per lane

  float* query_tile = reinterpret_cast<float*>(dynamic_shared() + 16);  // [32, kDim]
  float* value_tile = query_tile + kBlockSize * kDim;                   // [32, kDim]
  float* key_tile = value_tile + kBlockSize * kDim;                     // [32, kKeyStride]
  float* weights = key_tile;                                            // [32 queries, 32 keys], once the keys are used up
  int lane = static_cast<int>(threadIdx.x) % kWarp;
  int row0 = static_cast<int>(threadIdx.x) / kWarp * kFfmaRows;
  float acc[kFfmaRows][kOwn] = {};
  float max[kFfmaRows];
  float weight[kFfmaRows] = {};  // of this lane's keys, until finish()
  bool padded = false;           // whether a key was padding

  __device__ __forceinline__ FfmaRows() {
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r) max[r] = kLowest;
  }

  __device__ __forceinline__ void load_query(const Mra2Problem& p, const float* query, int block, std::uint32_t bits) {
    load_tile<float, kDim, kDim, kFfmaThreads>(query_tile, query, block, bits, p);
  }
  // Two groups of copies: the keys, the queries with the first of them, and the values.
  __device__ __forceinline__ void load(const Mra2Problem& p, const float* key, const float* value, int block, std::uint32_t bits) {
    load_tile<float, kDim, Shape::kKeyStride, kFfmaThreads>(key_tile, key, block, bits, p);
    copy_async_commit();
    load_tile<float, kDim, kDim, kFfmaThreads>(value_tile, value, block, bits, p);
    copy_async_commit();
  }

  // Takes in the tile that was loaded, of the tokens `key_bits`, and is done with it; all threads of the block call this. Returns the
  // sum of this lane's logits before they are scaled.
  __device__ __forceinline__ float attend(const Mra2Problem& p, std::uint32_t key_bits) {
    copy_async_wait<1>();
    __syncthreads();
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
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r) sum += logits[r];
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
    return sum;
  }

  // Completes the rows' weights.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r)
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) weight[r] += __shfl_xor_sync(0xffffffffu, weight[r], offset);
  }

  // Writes this warp's rows of block `block` of the context, of which `context` is token 0; 0 where `bits` have no token. `low_weight`
  // and `low_sum`, null for none, are those of the low resolution.
  __device__ __forceinline__ void store(const Mra2Problem& p, float* context, int block, std::uint32_t bits, float row_max,
                                        float low_weight, const float* low_sum, bool none_selected) {
    const std::int64_t first_token = static_cast<std::int64_t>(block) * kBlockSize;
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r) {
      if (first_token + row0 + r >= p.seq_len) continue;
      const bool is_token = (bits >> (row0 + r) & 1u) != 0;
      const FinalFactors f = final_factors<Exponent>(p, row_max, low_weight, max[r], weight[r], padded, none_selected);
#pragma unroll
      for (int c = 0; c < kOwn; ++c) {
        const int channel = lane + c * kWarp;
        if (channel >= p.head_dim) continue;
        const float low = low_sum == nullptr ? 0.0f : low_sum[channel];
        context[(first_token + row0 + r) * p.hidden + channel] = is_token ? acc[r][c] * f.high + low * f.low : 0.0f;
      }
    }
  }
};

}  // namespace mra::cuda
