// The end of launch 2: the low-resolution part of the softmax (step 10), over the pairs that are not selected.
#pragma once

#include "mra2_attention/cuda/problem.cuh"

namespace mra::cuda {

constexpr int kWeightStride = kWarp + 4;
constexpr int kLowRows = 256;     // rows per step of the low-resolution sum, at most
constexpr int kLowChannels = 64;  // channels per step of the same on tensor cores
static_assert(kSelectThreads == kWarp * kLowChannels / 4, "a thread loads four values of a step");

// Groups of 4 rows in a step of the low-resolution sum: one thread per group and 4 channels.
__host__ __device__ inline int low_groups(int head_dim) {
  const int groups = kSelectThreads / (head_dim / 4);
  return groups < kLowRows / 4 ? groups : kLowRows / 4;
}

inline std::size_t low_resolution_shared_bytes(int head_dim) {
  const std::size_t plain =
      (static_cast<std::size_t>(low_groups(head_dim)) * 4 * (kWeightStride + 1) + static_cast<std::size_t>(kWarp) * head_dim) *
      sizeof(float);
  const std::size_t mma = 2 * kWarp * (kLowChannels + 8) * sizeof(__nv_bfloat16) + kWarp * sizeof(float);
  return plain > mma ? plain : mma;
}

// Step 10, relative to each row's r: sums over the columns that are not selected. A thread owns 4 rows and 4 channels.
__device__ __forceinline__ void low_resolution(const Mra2Problem& p, std::int64_t head, const Threshold& threshold, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int thread = static_cast<int>(threadIdx.x);
  const int vectors = p.head_dim / 4;
  const int groups = low_groups(p.head_dim);
  const int rows = groups * 4;
  float* weights = shared;                         // [rows, 36]
  float* values = weights + rows * kWeightStride;  // [32, head_dim]
  float* row_max = values + kWarp * p.head_dim;    // [rows]
  const int vector = thread % vectors;
  const int group = thread / vectors;
  const std::uint32_t* bits = p.token_bits + head / p.num_heads * p.nb;
  const float* pooled = p.pooled_value + head * p.nb * p.head_dim;

  for (int row0 = 0; row0 < p.nb; row0 += rows) {
    const int end = min(rows, p.nb - row0);
    float acc[4][4] = {};
    float weight_sum = 0.0f;  // of row `thread`
    __syncthreads();
    if (thread < end) row_max[thread] = load_coherent(p.row_max + head * p.nb + row0 + thread);
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      __syncthreads();
      const int column = column0 + lane;
      const float count = column < p.nb ? static_cast<float>(__popc(bits[column])) : 0.0f;
#pragma unroll 4
      for (int row = warp; row < rows; row += kSelectWarps) {
        float weight = 0.0f;
        if (row < end && count > 0.0f) {
          const float logit = load_coherent(p.logits + (head * p.nb + row0 + row) * p.nb + column);
          if (!threshold.selects(score_key(p, logit, row_max[row], row0 + row, column), (row0 + row) * p.nb + column))
            weight = count * expf(logit - row_max[row]);
        }
        weights[row * kWeightStride + lane] = weight;
      }
      for (int i = thread; i < kWarp * vectors; i += kSelectThreads) {
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (column0 + i / vectors < p.nb)
          value = *reinterpret_cast<const float4*>(pooled + static_cast<std::int64_t>(column0) * p.head_dim + i * 4);
        *reinterpret_cast<float4*>(values + i * 4) = value;
      }
      __syncthreads();
      if (thread < end) {
#pragma unroll
        for (int k = 0; k < kWarp; k += 4) {
          const float4 w = *reinterpret_cast<const float4*>(weights + thread * kWeightStride + k);
          weight_sum += (w.x + w.y) + (w.z + w.w);
        }
      }
      if (group < groups) {
#pragma unroll 2
        for (int k = 0; k < kWarp; k += 4) {
          float4 w[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) w[i] = *reinterpret_cast<const float4*>(weights + (group * 4 + i) * kWeightStride + k);
#pragma unroll
          for (int kk = 0; kk < 4; ++kk) {
            const float4 v = *reinterpret_cast<const float4*>(values + (k + kk) * p.head_dim + vector * 4);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float weight = kk == 0 ? w[i].x : kk == 1 ? w[i].y : kk == 2 ? w[i].z : w[i].w;
              acc[i][0] = fmaf(weight, v.x, acc[i][0]);
              acc[i][1] = fmaf(weight, v.y, acc[i][1]);
              acc[i][2] = fmaf(weight, v.z, acc[i][2]);
              acc[i][3] = fmaf(weight, v.w, acc[i][3]);
            }
          }
        }
      }
    }
    if (group < groups) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = row0 + group * 4 + i;
        if (row < p.nb)
          *reinterpret_cast<float4*>(p.low_sum + (head * p.nb + row) * p.head_dim + vector * 4) =
              make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
      }
    }
    if (thread < end) p.low_weight[head * p.nb + row0 + thread] = weight_sum;
  }
}

// The float as two bfloat16, high and rest: together about 16 bits of it.
struct Split {
  std::uint32_t high;
  std::uint32_t low;
};

__device__ __forceinline__ Split split_pair(float first, float second) {
  const __nv_bfloat16 high0 = __float2bfloat16_rn(first);
  const __nv_bfloat16 high1 = __float2bfloat16_rn(second);
  const __nv_bfloat16 low0 = __float2bfloat16_rn(first - __bfloat162float(high0));
  const __nv_bfloat16 low1 = __float2bfloat16_rn(second - __bfloat162float(high1));
  return {static_cast<std::uint32_t>(__bfloat16_as_ushort(high1)) << 16 | __bfloat16_as_ushort(high0),
          static_cast<std::uint32_t>(__bfloat16_as_ushort(low1)) << 16 | __bfloat16_as_ushort(low0)};
}

// The same for half types, on tensor cores: weights and values as two bfloat16 each, of whose four products the three larger count.
// A warp owns 16 rows and 64 channels; its weights are computed where the fragments need them.
__device__ __forceinline__ void low_resolution_mma(const Mra2Problem& p, std::int64_t head, const Threshold& threshold,
                                                   void* shared) {
  constexpr int kStride = kLowChannels + 8;
  auto* high_values = static_cast<__nv_bfloat16*>(shared);                // [32, kStride]
  __nv_bfloat16* low_values = high_values + kWarp * kStride;              // [32, kStride]
  auto* counts = reinterpret_cast<float*>(low_values + kWarp * kStride);  // [32]
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int group = lane / 4;
  const int pair = lane % 4 * 2;
  const std::uint32_t* bits = p.token_bits + head / p.num_heads * p.nb;
  const float* pooled = p.pooled_value + head * p.nb * p.head_dim;
  const int value_offset = (lane / 8 % 2 * 8 + lane % 8) * kStride + lane / 16 * 8;

  for (int row0 = 0; row0 < p.nb; row0 += kSelectWarps * 16) {
    const int rows[2] = {row0 + warp * 16 + group, row0 + warp * 16 + group + 8};
    float row_max[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) row_max[r] = rows[r] < p.nb ? load_coherent(p.row_max + head * p.nb + rows[r]) : 0.0f;
    const bool has_rows = row0 + warp * 16 < p.nb;  // of the whole warp

    for (int channel0 = 0; channel0 < p.head_dim; channel0 += kLowChannels) {
      float acc[kLowChannels / 8][4] = {};
      float weight_sum[2] = {0.0f, 0.0f};
      for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
        __syncthreads();
        {
          const int column = column0 + thread / (kLowChannels / 4);
          const int channel = channel0 + thread % (kLowChannels / 4) * 4;
          float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          if (column < p.nb && channel < p.head_dim)
            value = *reinterpret_cast<const float4*>(pooled + static_cast<std::int64_t>(column) * p.head_dim + channel);
          const Split first = split_pair(value.x, value.y);
          const Split second = split_pair(value.z, value.w);
          const int at = thread / (kLowChannels / 4) * kStride + thread % (kLowChannels / 4) * 4;
          *reinterpret_cast<uint2*>(high_values + at) = make_uint2(first.high, second.high);
          *reinterpret_cast<uint2*>(low_values + at) = make_uint2(first.low, second.low);
        }
        if (thread < kWarp) counts[thread] = column0 + thread < p.nb ? static_cast<float>(__popc(bits[column0 + thread])) : 0.0f;
        __syncthreads();
        if (!has_rows) continue;
#pragma unroll 1
        for (int step = 0; step < kWarp; step += 16) {
          std::uint32_t high[4];
          std::uint32_t low[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {  // fragments: rows i % 2, columns pair and pair + 1 of half i / 2
            const int row = rows[i % 2];
            const int local = step + i / 2 * 8 + pair;
            float weight[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const int column = column0 + local + j;
              const float count = counts[local + j];
              weight[j] = 0.0f;
              if (row < p.nb && count > 0.0f) {
                const float logit = load_coherent(p.logits + (head * p.nb + row) * p.nb + column);
                if (!threshold.selects(score_key(p, logit, row_max[i % 2], row, column), row * p.nb + column))
                  weight[j] = count * expf(logit - row_max[i % 2]);
              }
              weight_sum[i % 2] += weight[j];
            }
            const Split split = split_pair(weight[0], weight[1]);
            high[i] = split.high;
            low[i] = split.low;
          }
          __syncwarp();
#pragma unroll
          for (int n = 0; n < kLowChannels / 8; n += 2) {
            std::uint32_t b[4];
            load_matrix_x4_transposed(b, high_values + step * kStride + value_offset + n * 8);
            mma_m16n8k16<__nv_bfloat16>(acc[n], high, b[0], b[1]);
            mma_m16n8k16<__nv_bfloat16>(acc[n], low, b[0], b[1]);
            mma_m16n8k16<__nv_bfloat16>(acc[n + 1], high, b[2], b[3]);
            mma_m16n8k16<__nv_bfloat16>(acc[n + 1], low, b[2], b[3]);
            load_matrix_x4_transposed(b, low_values + step * kStride + value_offset + n * 8);
            mma_m16n8k16<__nv_bfloat16>(acc[n], high, b[0], b[1]);
            mma_m16n8k16<__nv_bfloat16>(acc[n + 1], high, b[2], b[3]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        weight_sum[r] += __shfl_xor_sync(kAllLanes, weight_sum[r], 1);
        weight_sum[r] += __shfl_xor_sync(kAllLanes, weight_sum[r], 2);
        if (rows[r] >= p.nb) continue;
        if (channel0 == 0 && lane % 4 == 0) p.low_weight[head * p.nb + rows[r]] = weight_sum[r];
#pragma unroll
        for (int n = 0; n < kLowChannels / 8; ++n) {
          const int channel = channel0 + n * 8 + pair;
          if (channel < p.head_dim)
            *reinterpret_cast<float2*>(p.low_sum + (head * p.nb + rows[r]) * p.head_dim + channel) =
                make_float2(acc[n][2 * r], acc[n][2 * r + 1]);
        }
      }
    }
  }
}

}  // namespace mra::cuda
