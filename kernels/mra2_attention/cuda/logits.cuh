// Steps 3 to 5: the low-resolution logits of a head's blocks, and each row's maximum. Everything is float32.
#pragma once

#include "mra2_attention/cuda/threshold.cuh"

namespace mra::cuda {

constexpr int kDepthTile = 32;  // channels per step
constexpr int kDepthStride = kDepthTile + 4;
constexpr std::size_t kLogitsSharedBytes = (kRowTile + 4 * kWarp) * kDepthStride * sizeof(float);

// Steps 3-5 for rows [row0, row0 + 16 kRows) of `head`. A warp owns kRows rows (warp + 16 i), a lane kColumns columns (lane + 32 j)
// per step; short sequences take smaller tiles.
template <int kRows, int kColumns>
__device__ __forceinline__ void logits_tile(const Mra2Problem& p, std::int64_t head, int row0, float* shared) {
  constexpr int kTileRows = kRows * kSelectWarps;
  constexpr int kTileColumns = kColumns * kWarp;
  float* a_tile = shared;                             // [kTileRows, 36]
  float* b_tile = shared + kTileRows * kDepthStride;  // [kTileColumns, 36]
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int warp = static_cast<int>(threadIdx.x / kWarp);
  const float* query = p.pooled_query + head * p.nb * p.head_dim;
  const float* key = p.pooled_key + head * p.nb * p.head_dim;
  const std::uint32_t* bits = p.token_bits + head / p.num_heads * p.nb;
  float* logits = p.logits + (head * p.nb + row0) * p.nb;  // [kTileRows, nb]

  float row_max[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) row_max[i] = -INFINITY;

  for (int column0 = 0; column0 < p.nb; column0 += kTileColumns) {
    float acc[kRows][kColumns] = {};
    for (int depth0 = 0; depth0 < p.head_dim; depth0 += kDepthTile) {
      __syncthreads();
      constexpr int kVectors = kDepthTile / 4;
      const int vector = static_cast<int>(threadIdx.x % kVectors);
      const int depth = depth0 + vector * 4;
      for (int line = static_cast<int>(threadIdx.x / kVectors); line < kTileRows + kTileColumns;
           line += kSelectThreads / kVectors) {
        const bool is_a = line < kTileRows;
        const int block = is_a ? row0 + line : column0 + line - kTileRows;
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (block < p.nb && depth < p.head_dim)
          value = *reinterpret_cast<const float4*>((is_a ? query : key) + static_cast<std::int64_t>(block) * p.head_dim + depth);
        *reinterpret_cast<float4*>(shared + line * kDepthStride + vector * 4) = value;
      }
      __syncthreads();
#pragma unroll 1  // 64 registers: two thread blocks per multiprocessor hide the latency
      for (int depth = 0; depth < kDepthTile; depth += 4) {
        float4 a[kRows];
        float4 b[kColumns];
#pragma unroll
        for (int i = 0; i < kRows; ++i)
          a[i] = *reinterpret_cast<const float4*>(a_tile + (warp + kSelectWarps * i) * kDepthStride + depth);
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          b[j] = *reinterpret_cast<const float4*>(b_tile + (lane + kWarp * j) * kDepthStride + depth);
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            acc[i][j] = fmaf(a[i].x, b[j].x, acc[i][j]);
            acc[i][j] = fmaf(a[i].y, b[j].y, acc[i][j]);
            acc[i][j] = fmaf(a[i].z, b[j].z, acc[i][j]);
            acc[i][j] = fmaf(a[i].w, b[j].w, acc[i][j]);
          }
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int column = column0 + lane + kWarp * j;
      if (column >= p.nb) continue;
      const bool column_empty = bits[column] == 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = row0 + warp + kSelectWarps * i;
        if (row >= p.nb) continue;
        float logit = __fmul_rn(p.scale, acc[i][j]);  // not fused with what follows: the row's best must score exactly 0
        row_max[i] = fmaxf(row_max[i], logit);
        if (column_empty || bits[row] == 0) logit = __fsub_rn(logit, kMaskedBlockPenalty);
        logits[(row - row0) * p.nb + column] = logit;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = row0 + warp + kSelectWarps * i;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      row_max[i] = fmaxf(row_max[i], __shfl_xor_sync(kAllLanes, row_max[i], offset));
    if (lane == 0 && row < p.nb) p.row_max[head * p.nb + row] = row_max[i];
  }
}

// The logits of a thread block's rows.
__device__ __forceinline__ void make_logits(const Mra2Problem& p, const RowTile& tile, float* shared) {
  if (p.nb <= kSelectWarps)
    logits_tile<1, 1>(p, tile.head, tile.row0, shared);
  else if (p.nb <= kWarp)
    logits_tile<2, 1>(p, tile.head, tile.row0, shared);
  else if (p.nb <= 2 * kWarp)
    logits_tile<4, 2>(p, tile.head, tile.row0, shared);
  else
    logits_tile<4, 4>(p, tile.head, tile.row0, shared);
  __syncthreads();
}

}  // namespace mra::cuda
