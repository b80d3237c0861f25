// Mode expectation in plain float32, launch 2: four warps of 8 query rows, key tiles of 32.
#pragma once

#include "common/cuda/tile.cuh"
#include "yoso_attention/cuda/weight.cuh"

namespace mra::cuda {

template <int kDim>
struct YosoFfmaShape {
  static constexpr int kKeyStride = kDim + 4;  // a lane reads its own key row: 16 bytes of padding against bank conflicts
  static constexpr std::size_t kHead = kWarp * sizeof(float);  // for finish_rows
  static constexpr std::size_t kSharedBytes = kHead + (2 * kWarp * kDim + kWarp * kKeyStride) * sizeof(float);
  static_assert(kSharedBytes <= 99 * 1024, "the least that a thread block may have from compute capability 8.0 on");
};

template <int kDim>
__global__ void __launch_bounds__(kFfmaThreads) yoso_ffma_kernel(YosoProblem p) {
  using Shape = YosoFfmaShape<kDim>;
  constexpr int kOwn = kDim / kWarp;                                              // channels per lane: lane, lane + 32, ...
  float* factors = reinterpret_cast<float*>(dynamic_shared());                    // [32]
  float* query_tile = reinterpret_cast<float*>(dynamic_shared() + Shape::kHead);  // [32, kDim]
  float* value_tile = query_tile + kWarp * kDim;                                  // [32, kDim]
  float* key_tile = value_tile + kWarp * kDim;                                    // [32, kKeyStride]
  float* weights = key_tile;  // [32 queries, 32 keys], once the keys are used up

  const DenseWork work(p, kWarp);
  const float* query = static_cast<const float*>(p.query) + work.place.origin;
  const float* key = static_cast<const float*>(p.key) + work.place.origin;
  const float* value = static_cast<const float*>(p.value) + work.place.origin;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row0 = static_cast<int>(threadIdx.x) / kWarp * kFfmaRows;

  const auto load = [&](int tile) {
    load_tile<float, kDim, Shape::kKeyStride, kFfmaThreads>(key_tile, key, tile, work.bits[tile], p);
    copy_async_commit();
    load_tile<float, kDim, kDim, kFfmaThreads>(value_tile, value, tile, work.bits[tile], p);
    copy_async_commit();
  };
  float query_inverse[kFfmaRows] = {};
  if (work.length > 0) {
    load_tile<float, kDim, kDim, kFfmaThreads>(query_tile, query, static_cast<int>(work.first_token / kWarp), work.query_bits(p, 0),
                                               p);
    load(0);
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r) query_inverse[r] = work.inverse[0][work.first_token + row0 + r];
  }

  float acc[kFfmaRows][kOwn] = {};
  for (int tile = 0; tile < work.length; ++tile) {
    copy_async_wait<1>();
    __syncthreads();
    const bool is_token = (work.bits[tile] >> lane & 1u) != 0;
    const float key_inverse = work.inverse[1][tile * kWarp + lane];

    float weight[1][kFfmaRows] = {};  // of key `lane`; its product with the queries first
#pragma unroll 4
    for (int channel = 0; channel < kDim; channel += 4) {
      const float4 k = *reinterpret_cast<const float4*>(key_tile + lane * Shape::kKeyStride + channel);
#pragma unroll
      for (int r = 0; r < kFfmaRows; ++r) {
        const float4 q = *reinterpret_cast<const float4*>(query_tile + (row0 + r) * kDim + channel);
        weight[0][r] = fmaf(q.x, k.x, weight[0][r]);
        weight[0][r] = fmaf(q.y, k.y, weight[0][r]);
        weight[0][r] = fmaf(q.z, k.z, weight[0][r]);
        weight[0][r] = fmaf(q.w, k.w, weight[0][r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r) weight[0][r] = weight[0][r] * query_inverse[r] * key_inverse;
    weigh<true>(weight, p.code_len, 1.0f);
    copy_async_wait<0>();
    __syncthreads();  // the values have arrived, and the keys are used up
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r) weights[(row0 + r) * kWarp + lane] = is_token ? weight[0][r] : 0.0f;
    __syncwarp();
#pragma unroll 2
    for (int j = 0; j < kWarp; j += 4) {
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
    if (tile + 1 < work.length) load(tile + 1);
  }
  copy_async_wait<0>();

  float* totals = query_tile;  // [32, kKeyStride]; all tiles are used up
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kFfmaRows; ++r)
#pragma unroll
    for (int c = 0; c < kOwn; ++c) totals[(row0 + r) * Shape::kKeyStride + lane + c * kWarp] = acc[r][c];
  finish_rows<float, kFfmaThreads>(p, work.place, work.first_token, kWarp, totals, Shape::kKeyStride, factors);
}

}  // namespace mra::cuda
