// The last steps of every way through the operator: unit length, the convolution of the values, zeros at padding (steps 5 to 7).
#pragma once

#include "common/cuda/tile.cuh"
#include "yoso_attention/cuda/problem.cuh"

namespace mra::cuda {

// Writes `rows` rows of the context from their totals in shared memory, [rows, stride]; `factors` is room for one float per row. Begins
// and ends where all threads of the block are.
template <typename T, int kThreads>
__device__ __forceinline__ void finish_rows(const YosoProblem& p, const HeadPlace& place, std::int64_t first_token, int rows,
                                            const float* totals, int stride, float* factors) {
  constexpr int kSize = Vector<T>::kSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int32_t* mask = p.mask + place.example * p.seq_len;
  const T* value = static_cast<const T*>(p.value) + place.origin;
  T* context = static_cast<T*>(p.context) + place.origin;
  __syncthreads();  // the totals are there
  for (int row = static_cast<int>(threadIdx.x) / kWarp; row < rows; row += kThreads / kWarp) {
    float sum = 0.0f;
    for (int channel = lane; channel < p.head_dim; channel += kWarp)
      sum = fmaf(totals[row * stride + channel], totals[row * stride + channel], sum);
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    const float length = sqrtf(sum);
    // Not fmaxf, which would drop a NaN.
    if (lane == 0) factors[row] = 1.0f / (length < kYosoNormEpsilon ? kYosoNormEpsilon : length);
  }
  __syncthreads();

  const int vectors = p.head_dim / kSize;
  for (int i = static_cast<int>(threadIdx.x); i < rows * vectors; i += kThreads) {
    const int row = i / vectors;
    const int channel = i % vectors * kSize;
    const std::int64_t token = first_token + row;
    if (token >= p.seq_len) continue;
    float result[kSize] = {};
    if (mask[token] != 0) {
#pragma unroll
      for (int c = 0; c < kSize; ++c) result[c] = totals[row * stride + channel + c] * factors[row];
      if (p.conv_window > 0) {
        const T* weight = static_cast<const T*>(p.conv_weight) + static_cast<std::int64_t>(place.number) * p.conv_window;
        for (int u = 0; u < p.conv_window; ++u) {
          const std::int64_t other = token + u - p.conv_window / 2;
          if (other < 0 || other >= p.seq_len || mask[other] == 0) continue;
          float v[kSize] = {};
          Vector<T>::add(v, *reinterpret_cast<const uint4*>(value + other * p.hidden + channel));
          const float w = static_cast<float>(weight[u]);
#pragma unroll
          for (int c = 0; c < kSize; ++c) result[c] = fmaf(w, v[c], result[c]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kSize; c += 4)
      store4(context + token * p.hidden + channel + c, make_float4(result[c], result[c + 1], result[c + 2], result[c + 3]));
  }
}

}  // namespace mra::cuda
