// What both kernels of mode expectation share: the lengths of queries and keys (launch 1), and the weight of a pair (steps 2 and 3).
#pragma once

#include "yoso_attention/cuda/finish.cuh"

namespace mra::cuda {

constexpr int kYosoPrepareThreads = 256;

// Block (example, tile of tokens): the inverse lengths of all heads' queries and keys, and the mask as bits. One thread per row.
template <typename T>
__global__ void __launch_bounds__(kYosoPrepareThreads) yoso_prepare_kernel(YosoProblem p) {
  constexpr int kSize = Vector<T>::kSize;
  const std::int64_t example = blockIdx.x / p.tiles;
  const int tile = static_cast<int>(blockIdx.x - example * p.tiles);
  const std::int64_t first_token = static_cast<std::int64_t>(tile) * kWarp;
  const std::int32_t* mask = p.mask + example * p.seq_len;
  if (threadIdx.x < kWarp) {
    const std::int64_t token = first_token + threadIdx.x;
    const std::uint32_t bits = __ballot_sync(0xffffffffu, token < p.seq_len && mask[token] != 0);
    if (threadIdx.x == 0) p.token_bits[blockIdx.x] = bits;
  }
  for (int i = static_cast<int>(threadIdx.x); i < 2 * kWarp * p.num_heads; i += kYosoPrepareThreads) {
    const int head = i % p.num_heads;  // neighbours in a warp are neighbours in memory
    const int row = i / p.num_heads % kWarp;
    const int tensor = i / p.num_heads / kWarp;
    const std::int64_t token = first_token + row;
    float inverse = 0.0f;
    if (token < p.seq_len && mask[token] != 0) {
      const T* source = static_cast<const T*>(tensor == 0 ? p.query : p.key) + (example * p.seq_len + token) * p.hidden +
                        static_cast<std::int64_t>(head) * p.head_dim;
      float sums[kSize] = {};
      for (int channel = 0; channel < p.head_dim; channel += kSize) {
        float x[kSize] = {};
        Vector<T>::add(x, *reinterpret_cast<const uint4*>(source + channel));
#pragma unroll
        for (int c = 0; c < kSize; ++c) sums[c] = fmaf(x[c], x[c], sums[c]);
      }
#pragma unroll
      for (int c = 1; c < kSize; ++c) sums[0] += sums[c];
      const float length = sqrtf(sums[0]);
      inverse = 1.0f / (length < kYosoNormEpsilon ? kYosoNormEpsilon : length);
    }
    (tensor == 0 ? p.inverse_length[0] : p.inverse_length[1])[((example * p.num_heads + head) * p.tiles + tile) * kWarp + row] =
        inverse;
  }
}

// acos(x) / pi = sqrt(1 - x) * P(x) for 0 <= x <= 1, P fitted for the least absolute error. In float32 it is off by at most 8e-8 in
// degree 6 and 1.6e-6 in degree 4; a relative error of hash_code_len / (1 - acos(c) / pi) times that in the weight, which in degree 4
// is well below the rounding of a weight to a half type.
template <bool kPrecise>
__device__ __forceinline__ float acos_over_pi(float x) {
  const float rest = 1.0f - x;
  const float root = sqrt_fast(rest < 0.0f ? 0.0f : rest);  // not fmaxf: a NaN stays one
  if constexpr (kPrecise) {
    float sum = 0.0008313355501741171f;
    sum = fmaf(sum, x, -0.003820796962827444f);
    sum = fmaf(sum, x, 0.008837207220494747f);
    sum = fmaf(sum, x, -0.015660028904676437f);
    sum = fmaf(sum, x, 0.028277341276407242f);
    sum = fmaf(sum, x, -0.06830646842718124f);
    return root * fmaf(sum, x, 0.4999999701976776f);
  }
  float sum = 0.0030980969313532114f;
  sum = fmaf(sum, x, -0.011974245309829712f);
  sum = fmaf(sum, x, 0.02725953981280327f);
  sum = fmaf(sum, x, -0.06820763647556305f);
  return root * fmaf(sum, x, 0.4999984800815582f);
}

// Cosines, which rounding may have put outside of [-1, 1], to weights times `scale`: (1 - acos(c) / pi)^exponent.
template <bool kPrecise, int kRows, int kColumns>
__device__ __forceinline__ void weigh(float (&x)[kRows][kColumns], int exponent, float scale) {
  float base[kRows][kColumns];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float angle = acos_over_pi<kPrecise>(fabsf(x[r][c]));
      base[r][c] = x[r][c] < 0.0f ? angle : 1.0f - angle;
      x[r][c] = scale;
    }
  while (true) {  // the exponent is the same for all threads
    if ((exponent & 1) != 0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) x[r][c] *= base[r][c];
    }
    exponent >>= 1;
    if (exponent == 0) break;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) base[r][c] *= base[r][c];
  }
}

// Where a thread block of mode expectation works: a head's queries from `first_token` on, and the key tiles up to the last that has a
// token. The same for all threads; every lane of a warp must be there.
struct DenseWork {
  HeadPlace place;
  std::int64_t first_token;
  const std::uint32_t* bits;  // [tiles]
  const float* inverse[2];    // [tiles * 32], as inverse_length
  int length;                 // key tiles; 0 if none of the queries is a token

  __device__ __forceinline__ DenseWork(const YosoProblem& p, int rows) {
    const std::int64_t blocks_per_head = blocks_for(p.seq_len, rows);
    const std::int64_t head = blockIdx.x / blocks_per_head;
    first_token = (blockIdx.x - head * blocks_per_head) * rows;
    place = place_of(p, head);
    bits = p.token_bits + place.example * p.tiles;
    for (int i = 0; i < 2; ++i) inverse[i] = p.inverse_length[i] + head * p.tiles * kWarp;
    length = 0;
    if ((query_bits(p, 0) | query_bits(p, rows / kWarp - 1)) == 0) return;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int first = (p.tiles - 1) / kWarp * kWarp; first >= 0 && length == 0; first -= kWarp) {
      const std::uint32_t used = __ballot_sync(0xffffffffu, first + lane < p.tiles && bits[first + lane] != 0);
      if (used != 0) length = first + kWarp - __clz(static_cast<int>(used));
    }
  }
  // The bits of 32 of the queries; at most two tiles of queries to a block.
  __device__ __forceinline__ std::uint32_t query_bits(const YosoProblem& p, int tile) const {
    const std::int64_t number = first_token / kWarp + tile;
    return number < p.tiles ? bits[number] : 0;
  }
};

}  // namespace mra::cuda
