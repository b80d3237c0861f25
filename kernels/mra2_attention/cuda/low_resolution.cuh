// The low-resolution part of the softmax (step 10), over the pairs that are not selected.
#pragma once

#include "mra2_attention/cuda/lists.cuh"

namespace mra::cuda {

constexpr int kWeightStride = kWarp + 4;
constexpr int kLowChannels = 64;  // per step on tensor cores
constexpr int kLowColumns = 64;   // likewise
constexpr int kLowStride = 64 + 8;
static_assert(kLowChannels == 64 && kLowColumns == 64 && kSelectWarps == 4 * 4 && kRowTile == 4 * 16, "what the warps share out");
constexpr std::size_t kLowMmaSharedBytes =
    kMra2CudaMaxBlocks / kWarp * sizeof(std::uint32_t) + 2 * (kLowColumns + kRowTile) * kLowStride * sizeof(__nv_bfloat16);

// Groups of 4 rows in a step of the low-resolution sum: one thread per group and 4 channels.
__host__ __device__ inline int low_groups(int head_dim) {
  const int groups = kSelectThreads / (head_dim / 4);
  return groups < kRowTile / 4 ? groups : kRowTile / 4;
}

inline std::size_t low_resolution_shared_bytes(int head_dim) {
  return (static_cast<std::size_t>(low_groups(head_dim)) * 4 * (kWeightStride + 1) + static_cast<std::size_t>(kWarp) * head_dim) *
         sizeof(float);
}

// Relative to each row's r: sums over the columns that are not selected. A thread owns 4 rows and 4 channels.
__device__ __forceinline__ void low_resolution(const Mra2Problem& p, const RowTile& tile, const Threshold& threshold,
                                               float* shared) {
  const std::int64_t head = tile.head;
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

  for (int row0 = tile.row0; row0 < tile.end; row0 += rows) {
    const int end = min(rows, tile.end - row0);
    float acc[4][4] = {};
    float weight_sum = 0.0f;  // of row `thread`
    __syncthreads();
    if (thread < end) row_max[thread] = p.row_max[head * p.nb + row0 + thread];
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      __syncthreads();
      const int column = column0 + lane;
      const float count = column < p.nb ? static_cast<float>(__popc(bits[column])) : 0.0f;
#pragma unroll 4
      for (int row = warp; row < rows; row += kSelectWarps) {
        float weight = 0.0f;
        if (row < end && count > 0.0f) {
          const float logit = p.logits[(head * p.nb + row0 + row) * p.nb + column];
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
        if (row < tile.end)
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

// The lists too, and the same sums for half types, on tensor cores: weights and values as two bfloat16 each, of whose four products the
// three larger count. A warp makes the weights of four rows, and has 16 rows and 16 channels of the product.
__device__ __forceinline__ void make_lists_and_low_resolution(const Mra2Problem& p, const RowTile& tile, const Threshold& threshold,
                                                              void* shared) {
  constexpr int kStride = kLowStride;
  constexpr int kOwnRows = kRowTile / kSelectWarps;
  auto* full_blocks = static_cast<std::uint32_t*>(shared);                                         // [nb / 32]
  auto* high_values = reinterpret_cast<__nv_bfloat16*>(full_blocks + kMra2CudaMaxBlocks / kWarp);  // [64 columns, kStride]
  __nv_bfloat16* low_values = high_values + kLowColumns * kStride;                                 // [64 columns, kStride]
  __nv_bfloat16* high_weights = low_values + kLowColumns * kStride;                                // [64 rows, kStride]
  __nv_bfloat16* low_weights = high_weights + kRowTile * kStride;                                  // [64 rows, kStride]
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const std::uint32_t* bits = p.token_bits + tile.head / p.num_heads * p.nb;
  const float* pooled = p.pooled_value + tile.head * p.nb * p.head_dim;
  const std::int64_t rows = tile.head * p.nb + tile.row0;  // of all heads

  float row_max[kOwnRows];
  float weight_sum[kOwnRows] = {};
  ListWriter writers[kOwnRows];
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r) {
    const int row = warp + r * kSelectWarps;
    row_max[r] = tile.row0 + row < tile.end ? p.row_max[rows + row] : 0.0f;
    writers[r] = {p.lists + (rows + row) * p.list_stride, 0};
  }
  find_full_blocks(p, tile.head, full_blocks);

  const int group = warp % 4;             // of 16 rows
  const int own_channel = warp / 4 * 16;  // of 64
  for (int channel0 = 0; channel0 < p.head_dim; channel0 += kLowChannels) {
    const bool has_work = tile.row0 + group * 16 < tile.end && channel0 + own_channel < p.head_dim;
    float acc[2][4] = {};
    for (int column0 = 0; column0 < p.nb; column0 += kLowColumns) {
      __syncthreads();
      constexpr int kVectors = kLowChannels / 4;
#pragma unroll
      for (int i = 0; i < kLowColumns * kVectors / kSelectThreads; ++i) {
        const int local = (i * kSelectThreads + thread) / kVectors;
        const int channel = thread % kVectors * 4;
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (column0 + local < p.nb && channel0 + channel < p.head_dim)
          value = *reinterpret_cast<const float4*>(pooled + static_cast<std::int64_t>(column0 + local) * p.head_dim + channel0 +
                                                   channel);
        const Split first = split_pair(value.x, value.y);
        const Split second = split_pair(value.z, value.w);
        *reinterpret_cast<uint2*>(high_values + local * kStride + channel) = make_uint2(first.high, second.high);
        *reinterpret_cast<uint2*>(low_values + local * kStride + channel) = make_uint2(first.low, second.low);
      }
#pragma unroll
      for (int half = 0; half < kLowColumns; half += kWarp) {
        const int column = column0 + half + lane;
        const float count = column < p.nb ? static_cast<float>(__popc(bits[column])) : 0.0f;
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r) {
          const int local = warp + r * kSelectWarps;
          const int row = tile.row0 + local;
          float weight = 0.0f;
          if (row < tile.end && column0 + half < p.nb) {
            bool selected = false;
            if (column < p.nb) {
              const float logit = p.logits[(rows + local) * p.nb + column];
              selected = threshold.selects(score_key(p, logit, row_max[r], row, column), row * p.nb + column);
              if (!selected && count > 0.0f) weight = count * expf(logit - row_max[r]);
            }
            if (channel0 == 0) {
              writers[r].add(selected, column0 + half, full_blocks);
              weight_sum[r] += weight;
            }
          }
          const __nv_bfloat16 high = __float2bfloat16_rn(weight);
          high_weights[local * kStride + half + lane] = high;
          low_weights[local * kStride + half + lane] = __float2bfloat16_rn(weight - __bfloat162float(high));
        }
      }
      __syncthreads();
      if (!has_work) continue;
#pragma unroll
      for (int k = 0; k < kLowColumns; k += 16) {
        const int weight_at = (group * 16 + lane % 16) * kStride + k + lane / 16 * 8;
        const int value_at = (k + lane / 8 % 2 * 8 + lane % 8) * kStride + own_channel + lane / 16 * 8;
        std::uint32_t high[4];
        std::uint32_t low[4];
        std::uint32_t b[4];
        load_matrix_x4(high, high_weights + weight_at);
        load_matrix_x4(low, low_weights + weight_at);
        load_matrix_x4_transposed(b, high_values + value_at);
        mma_m16n8k16<__nv_bfloat16>(acc[0], high, b[0], b[1]);
        mma_m16n8k16<__nv_bfloat16>(acc[0], low, b[0], b[1]);
        mma_m16n8k16<__nv_bfloat16>(acc[1], high, b[2], b[3]);
        mma_m16n8k16<__nv_bfloat16>(acc[1], low, b[2], b[3]);
        load_matrix_x4_transposed(b, low_values + value_at);
        mma_m16n8k16<__nv_bfloat16>(acc[0], high, b[0], b[1]);
        mma_m16n8k16<__nv_bfloat16>(acc[1], high, b[2], b[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // rows i / 2, channels i % 2
      const int local = group * 16 + lane / 4 + i / 2 * 8;
      const int channel = channel0 + own_channel + i % 2 * 8 + lane % 4 * 2;
      if (tile.row0 + local < tile.end && channel < p.head_dim)
        *reinterpret_cast<float2*>(p.low_sum + (rows + local) * p.head_dim + channel) =
            make_float2(acc[i % 2][i / 2 * 2], acc[i % 2][i / 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r) {
    const int local = warp + r * kSelectWarps;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) weight_sum[r] += __shfl_xor_sync(kAllLanes, weight_sum[r], offset);
    if (tile.row0 + local < tile.end && lane == 0) {
      p.low_weight[rows + local] = weight_sum[r];
      p.row_counts[rows + local] = writers[r].count;
    }
  }
}

}  // namespace mra::cuda
