// The attention of one warp's 16 query rows to tiles of 32 keys on tensor cores (steps 8 to 12), as all kernels for half types have it.
#pragma once

#include "mra2_attention/cuda/softmax.cuh"

namespace mra::cuda {

// Tiles lie in shared memory as [rows, kStride]. This thread has rows lane() / 4 and + 8, and of each 8 columns pair() and the next.
template <typename T, int kDim>
struct MmaRows {
  using Exponent = BinaryExponent;
  static constexpr int kStride = kDim + 8;  // 16 bytes of padding: ldmatrix without bank conflicts
  static constexpr int kTile = kBlockSize * kStride;
  static constexpr int kSteps = kDim / 16;        // of 16 channels
  static constexpr int kColumns = kDim / 8;       // of 8 channels
  static constexpr bool kKeepQuery = kDim <= 64;  // query fragments stay in registers; else they would be spilled

  T* tile;  // this warp's 16 rows of queries, at last of the result
  float scale;
  std::uint32_t query[kKeepQuery ? kSteps : 1][4];
  float acc[kColumns][4];
  float max[2];     // of the included keys' logits, in units of Exponent
  float weight[2];  // of this thread's columns, until finish()
  bool padded;      // whether a key was padding

  __device__ __forceinline__ MmaRows(const Mra2Problem& p, T* query_rows)
      : tile(query_rows), scale(p.scale * Exponent::kLog), max{kLowest, kLowest}, weight{0.0f, 0.0f}, padded(false) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[n][i] = 0.0f;
  }

  // Asked for where they are needed: they need no registers in between.
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x % kWarp); }
  static __device__ __forceinline__ int pair() { return static_cast<int>(threadIdx.x % 4) * 2; }

  __device__ __forceinline__ void load_query(int step) {
    load_matrix_x4(query[kKeepQuery ? step : 0], tile + lane() % 16 * kStride + lane() / 16 * 8 + step * 16);
  }
  // Once the queries have arrived.
  __device__ __forceinline__ void keep_query() {
    if constexpr (kKeepQuery) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) load_query(k);
    }
  }

  // Takes in a tile of keys whose tokens are `key_bits`. Returns the sum of this thread's logits before they are scaled.
  template <bool kSum>
  __device__ __forceinline__ float attend(const T* key_tile, const T* value_tile, std::uint32_t key_bits) {
    float logits[4][4] = {};  // [16 rows, 32 keys]
    const T* key_row = key_tile + (lane() / 16 * 8 + lane() % 8) * kStride + lane() / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if constexpr (!kKeepQuery) load_query(k);
      const auto& a = query[kKeepQuery ? k : 0];
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4(b, key_row + n * 8 * kStride + k * 16);
        mma_m16n8k16<T>(logits[n], a, b[0], b[1]);
        mma_m16n8k16<T>(logits[n + 1], a, b[2], b[3]);
      }
    }
    float sum = 0.0f;
    if constexpr (kSum) {
#pragma unroll
      for (int n = 0; n < 4; ++n) sum += (logits[n][0] + logits[n][1]) + (logits[n][2] + logits[n][3]);
    }

    // The usual tile has no padding, and its maximum may be scaled instead of all that it is taken of.
    if (key_bits == 0xffffffffu && scale > 0.0f) {
      soften<true>(logits, key_bits);
    } else {
      padded |= key_bits != 0xffffffffu;
      soften<false>(logits, key_bits);
    }

    // The logits' accumulators are, two by two, the left operand of the product with the values.
    const T* value_row = value_tile + (lane() / 8 % 2 * 8 + lane() % 8) * kStride + lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const std::uint32_t a[4] = {pack<T>(logits[2 * k][0], logits[2 * k][1]), pack<T>(logits[2 * k][2], logits[2 * k][3]),
                                  pack<T>(logits[2 * k + 1][0], logits[2 * k + 1][1]),
                                  pack<T>(logits[2 * k + 1][2], logits[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kColumns; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4_transposed(b, value_row + k * 16 * kStride + n * 8);
        mma_m16n8k16<T>(acc[n], a, b[0], b[1]);
        mma_m16n8k16<T>(acc[n + 1], a, b[2], b[3]);
      }
    }
    return sum;
  }

  // Completes the rows' weights.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      weight[r] += __shfl_xor_sync(0xffffffffu, weight[r], 1);
      weight[r] += __shfl_xor_sync(0xffffffffu, weight[r], 2);
    }
  }

  // Writes rows [first_token, first_token + 16) of the context, of which `context` is token 0: acc * factors[r].high + low_sum *
  // factors[r].low, and 0 where `bits` have no token. Null for no low_sum. They go through this warp's rows of the query tile, which
  // its lanes are done with, so that stores are 16 bytes wide.
  __device__ __forceinline__ void store(const Mra2Problem& p, T* context, std::int64_t first_token, std::uint32_t bits,
                                        const FinalFactors (&factors)[2], const float* low_sum) {
    const int group = lane() / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool is_token = (bits >> (group + r * 8) & 1u) != 0;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        if (n * 8 >= p.head_dim) continue;
        float2 low = make_float2(0.0f, 0.0f);
        if (low_sum != nullptr) low = *reinterpret_cast<const float2*>(low_sum + n * 8 + pair());
        const float first = acc[n][2 * r] * factors[r].high + low.x * factors[r].low;
        const float second = acc[n][2 * r + 1] * factors[r].high + low.y * factors[r].low;
        *reinterpret_cast<std::uint32_t*>(tile + (group + r * 8) * kStride + n * 8 + pair()) =
            is_token ? pack<T>(first, second) : 0u;
      }
    }
    __syncwarp();
    const int vectors = p.head_dim / 8;
    for (int i = lane(); i < 16 * vectors; i += kWarp) {
      const int token = i / vectors;
      const int channel = i % vectors * 8;
      if (first_token + token < p.seq_len)
        *reinterpret_cast<uint4*>(context + (first_token + token) * p.hidden + channel) =
            *reinterpret_cast<const uint4*>(tile + token * kStride + channel);
    }
  }

 private:
  // Turns logits into weights relative to the running maximum, which may grow. kFull: no key is padding, and the scale is positive.
  template <bool kFull>
  __device__ __forceinline__ void soften(float (&logits)[4][4], std::uint32_t key_bits) {
    const auto is_token = [&](int n, int i) { return (key_bits >> (n * 8 + pair() + i % 2) & 1u) != 0; };
    float tile_max[2] = {kLowest, kLowest};
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (!kFull) logits[n][i] = is_token(n, i) ? logits[n][i] * scale : kLowest;
        tile_max[i / 2] = fmaxf(tile_max[i / 2], logits[n][i]);
      }
    float new_max[2];
    bool grows = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(0xffffffffu, tile_max[r], 1));
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(0xffffffffu, tile_max[r], 2));
      new_max[r] = fmaxf(max[r], kFull ? tile_max[r] * scale : tile_max[r]);
      grows |= new_max[r] > max[r];
    }
    if (__ballot_sync(0xffffffffu, grows) != 0) {  // in long lists seldom
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float factor = Exponent::exp(max[r] - new_max[r]);
        max[r] = new_max[r];
        weight[r] *= factor;
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          acc[n][2 * r] *= factor;
          acc[n][2 * r + 1] *= factor;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float e = Exponent::exp(kFull ? fmaf(logits[n][i], scale, -max[i / 2]) : logits[n][i] - max[i / 2]);
        if constexpr (!kFull) e = is_token(n, i) ? e : 0.0f;
        weight[i / 2] += e;
        logits[n][i] = e;
      }
  }
};

}  // namespace mra::cuda
