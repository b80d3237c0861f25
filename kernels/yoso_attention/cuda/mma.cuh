// Mode expectation for half types on tensor cores, launch 2: warps of 16 query rows, key tiles of 32.
#pragma once

#include "common/cuda/tile.cuh"
#include "yoso_attention/cuda/weight.cuh"

namespace mra::cuda {

template <int kDim>
struct YosoMmaShape {
  static constexpr int kWarps = kDim <= 128 ? 4 : 2;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kRows = kWarps * 16;
  static constexpr int kStages = kDim <= 64 ? 3 : 2;  // key/value tiles under way or in use
  static constexpr int kStride = kDim + 8;            // 16 bytes of padding: ldmatrix without bank conflicts
  static constexpr int kTile = kWarp * kStride;
  static constexpr int kMinBlocks = kDim <= 64 ? 4 : kDim <= 128 ? 3 : 2;  // per multiprocessor
  static constexpr bool kKeepQuery = kDim <= 128;                          // query fragments stay in registers
  static constexpr std::size_t kHead = (kRows + kStages * kWarp + 4) * sizeof(float);
  static constexpr std::size_t kSharedBytes = kHead + (kRows * kStride + 2 * kStages * kTile) * 2;
  static constexpr int kTotalStride = kDim + 4;
  static_assert(kStages <= 4 && kHead % 16 == 0, "the words before the tiles");
  static_assert(kRows * kTotalStride * sizeof(float) <= kSharedBytes - kHead, "the totals take the room of the tiles");
  static_assert(kSharedBytes <= 99 * 1024, "the least that a thread block may have from compute capability 8.0 on");
};

// Weights are rounded to T, and float16 ends at 2^-24: it holds them times a power of two, below which only weights under 2^-39 vanish.
template <typename T>
constexpr float kWeightScale = 1.0f;
template <>
constexpr float kWeightScale<__half> = 32768.0f;

template <typename T, int kDim>
__global__ void __launch_bounds__(YosoMmaShape<kDim>::kThreads, YosoMmaShape<kDim>::kMinBlocks) yoso_mma_kernel(YosoProblem p) {
  using Shape = YosoMmaShape<kDim>;
  constexpr int kThreads = Shape::kThreads;
  constexpr int kStride = Shape::kStride;
  constexpr int kSteps = kDim / 16;                             // of 16 channels
  constexpr int kColumns = kDim / 8;                            // of 8 channels
  float* factors = reinterpret_cast<float*>(dynamic_shared());  // [kRows]
  float* stage_inverse = factors + Shape::kRows;                // [kStages][32], of the keys
  std::uint32_t* stage_bits = reinterpret_cast<std::uint32_t*>(stage_inverse + Shape::kStages * kWarp);  // [kStages], likewise
  T* query_tile = reinterpret_cast<T*>(dynamic_shared() + Shape::kHead);                                 // [kRows, kStride]
  T* ring = query_tile + Shape::kRows * kStride;  // [kStages][key, value][32, kStride]

  const DenseWork work(p, Shape::kRows);
  const T* query = static_cast<const T*>(p.query) + work.place.origin;
  const T* key = static_cast<const T*>(p.key) + work.place.origin;
  const T* value = static_cast<const T*>(p.value) + work.place.origin;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int length = work.length;

  std::uint32_t listed_bits = 0;  // lane i holds those of tile i of 32, so that loading a tile waits for no other load
  const auto load_stage = [&](int tile) {
    if (tile < length) {
      if (tile % kWarp == 0 && tile + lane < length) listed_bits = work.bits[tile + lane];
      const std::uint32_t bits = __shfl_sync(0xffffffffu, listed_bits, tile % kWarp);
      const int slot = tile % Shape::kStages;
      if (threadIdx.x == 0) stage_bits[slot] = bits;
      if (threadIdx.x < kWarp / 4)
        copy_async_16(stage_inverse + slot * kWarp + threadIdx.x * 4, work.inverse[1] + tile * kWarp + threadIdx.x * 4, true);
      T* stage = ring + slot * 2 * Shape::kTile;
      load_tile<T, kDim, kStride, kThreads>(stage, key, tile, bits, p);
      load_tile<T, kDim, kStride, kThreads>(stage + Shape::kTile, value, tile, bits, p);
    }
    copy_async_commit();  // an empty group too, so that the count of groups under way holds
  };
  if (length > 0) {
#pragma unroll
    for (int tile = 0; tile < Shape::kRows / kWarp; ++tile)
      load_tile<T, kDim, kStride, kThreads>(query_tile + tile * Shape::kTile, query,
                                            static_cast<int>(work.first_token / kWarp) + tile, work.query_bits(p, tile), p);
  }
#pragma unroll
  for (int tile = 0; tile < Shape::kStages - 1; ++tile) load_stage(tile);

  const int group = lane / 4;  // this thread's rows are group and group + 8 of the warp's 16
  const int pair = lane % 4 * 2;
  const T* query_row = query_tile + (warp * 16 + lane % 16) * kStride + lane / 16 * 8;
  const int key_offset = (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
  const int value_offset = (lane / 8 % 2 * 8 + lane % 8) * kStride + lane / 16 * 8;
  float query_inverse[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::int64_t token = work.first_token + warp * 16 + group + r * 8;
    if (token < p.seq_len) query_inverse[r] = work.inverse[0][token];
  }

  std::uint32_t query_fragments[Shape::kKeepQuery ? kSteps : 1][4];
  float acc[kColumns][4];
#pragma unroll
  for (int n = 0; n < kColumns; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[n][i] = 0.0f;

  for (int tile = 0; tile < length; ++tile) {
    copy_async_wait<Shape::kStages - 2>();
    __syncthreads();  // tile `tile` has arrived for all, and all are done with the stage that is filled next
    load_stage(tile + Shape::kStages - 1);
    const int slot = tile % Shape::kStages;
    const T* key_tile = ring + slot * 2 * Shape::kTile;
    const T* value_tile = key_tile + Shape::kTile;
    const float* key_inverse = stage_inverse + slot * kWarp;
    const std::uint32_t key_bits = stage_bits[slot];
    if constexpr (Shape::kKeepQuery) {
      if (tile == 0) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) load_matrix_x4(query_fragments[k], query_row + k * 16);
      }
    }

    // Products [16 rows, 32 keys], then their weights.
    float weights[4][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if constexpr (!Shape::kKeepQuery) load_matrix_x4(query_fragments[0], query_row + k * 16);
      const auto& a = query_fragments[Shape::kKeepQuery ? k : 0];
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4(b, key_tile + n * 8 * kStride + key_offset + k * 16);
        mma_m16n8k16<T>(weights[n], a, b[0], b[1]);
        mma_m16n8k16<T>(weights[n + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float2 inverse = *reinterpret_cast<const float2*>(key_inverse + n * 8 + pair);
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[n][i] = weights[n][i] * query_inverse[i / 2] * (i % 2 == 0 ? inverse.x : inverse.y);
    }
    weigh<false>(weights, p.code_len, kWeightScale<T>);
    if (key_bits != 0xffffffffu) {
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if ((key_bits >> (n * 8 + pair + i % 2) & 1u) == 0) weights[n][i] = 0.0f;
    }

    // The accumulators of the weights are, two by two, the left operand of the product with the values.
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const std::uint32_t a[4] = {pack<T>(weights[2 * k][0], weights[2 * k][1]), pack<T>(weights[2 * k][2], weights[2 * k][3]),
                                  pack<T>(weights[2 * k + 1][0], weights[2 * k + 1][1]),
                                  pack<T>(weights[2 * k + 1][2], weights[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kColumns; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4_transposed(b, value_tile + k * 16 * kStride + value_offset + n * 8);
        mma_m16n8k16<T>(acc[n], a, b[0], b[1]);
        mma_m16n8k16<T>(acc[n + 1], a, b[2], b[3]);
      }
    }
  }
  copy_async_wait<0>();

  float* totals = reinterpret_cast<float*>(query_tile);  // [kRows, kTotalStride]; all tiles are used up
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
      *reinterpret_cast<float2*>(totals + (warp * 16 + group + r * 8) * Shape::kTotalStride + n * 8 + pair) =
          make_float2(acc[n][2 * r] / kWeightScale<T>, acc[n][2 * r + 1] / kWeightScale<T>);
  finish_rows<T, kThreads>(p, work.place, work.first_token, Shape::kRows, totals, Shape::kTotalStride, factors);
}

}  // namespace mra::cuda
