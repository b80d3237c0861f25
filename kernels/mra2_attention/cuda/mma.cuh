// The last launch for half types: attention over the selected blocks on tensor cores, two warps of 16 query rows per chunk.
#pragma once

#include "mra2_attention/cuda/mma_rows.cuh"

namespace mra::cuda {

constexpr int kMra2MmaThreads = 2 * kWarp;

template <int kDim>
struct Mra2MmaShape {
  static constexpr int kStages = kDim <= 64 ? 3 : 2;  // key/value tiles under way or in use
  static constexpr int kStride = kDim + 8;
  static constexpr int kMinBlocks = kDim <= 64 ? 7 : kDim <= 128 ? 5 : 2;  // per multiprocessor, as many as shared memory allows
  static constexpr std::size_t kSharedBytes = (1 + 2 * kStages) * kBlockSize * kStride * 2;
  static constexpr std::size_t kWords = kSharedBytes - 16;  // where a few words lie: in the padding of the last row
  static_assert((1 + kStages) * sizeof(std::uint32_t) <= 16, "the words of the padding");
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kMra2MmaThreads, Mra2MmaShape<kDim>::kMinBlocks) mra2_mma_kernel(Mra2Problem p) {
  using Shape = Mra2MmaShape<kDim>;
  using Rows = MmaRows<T, kDim>;
  static_assert(Rows::kStride == Shape::kStride);
  std::uint32_t* shared_flag = reinterpret_cast<std::uint32_t*>(dynamic_shared() + Shape::kWords);
  std::uint32_t* stage_bits = shared_flag + 1;             // [kStages], the tokens of each stage's key block
  T* query_tile = reinterpret_cast<T*>(dynamic_shared());  // [32, kStride]
  T* ring = query_tile + Rows::kTile;                      // [kStages][key, value][32, kStride]

  ChunkWork work;
  if (!work.find(p)) return;
  const int length = work.chunk.length;
  const T* key = static_cast<const T*>(p.key) + work.origin;
  const T* value = static_cast<const T*>(p.value) + work.origin;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;

  int listed_block = 0;  // lane i holds entry i of 32 of the list, so that loading a tile waits for no other load
  std::uint32_t listed_bits = 0;
  const auto load_stage = [&](int tile) {
    if (tile < length) {
      if (tile % kWarp == 0 && tile + lane < length) {
        const std::uint16_t entry = work.list[tile + lane];
        listed_block = entry & kBlockNumber;
        listed_bits = work.bits_of(entry);
      }
      const int block = __shfl_sync(0xffffffffu, listed_block, tile % kWarp);
      const std::uint32_t bits = __shfl_sync(0xffffffffu, listed_bits, tile % kWarp);
      if (threadIdx.x == 0) stage_bits[tile % Shape::kStages] = bits;
      T* stage = ring + tile % Shape::kStages * 2 * Rows::kTile;
      load_tile<T, kDim, Rows::kStride, kMra2MmaThreads>(stage, key, block, bits, p);
      load_tile<T, kDim, Rows::kStride, kMra2MmaThreads>(stage + Rows::kTile, value, block, bits, p);
    }
    copy_async_commit();  // an empty group too, so that the count of groups under way holds
  };
  load_tile<T, kDim, Rows::kStride, kMra2MmaThreads>(query_tile, static_cast<const T*>(p.query) + work.origin, work.chunk.row,
                                                     work.chunk.bits, p);
#pragma unroll
  for (int tile = 0; tile < Shape::kStages - 1; ++tile) load_stage(tile);

  Rows rows(p, query_tile + warp * 16 * Rows::kStride);
  for (int tile = 0; tile < length; ++tile) {
    copy_async_wait<Shape::kStages - 2>();
    __syncthreads();  // tile `tile` has arrived for all, and all are done with the stage that is filled next
    load_stage(tile + Shape::kStages - 1);
    if (tile == 0) rows.keep_query();
    const T* stage = ring + tile % Shape::kStages * 2 * Rows::kTile;
    rows.template attend<false>(stage, stage + Rows::kTile, stage_bits[tile % Shape::kStages]);
  }
  copy_async_wait<0>();
  rows.finish();

  const std::int64_t row = work.head * p.nb + work.chunk.row;
  if (work.chunk.parts > 1) {
    const std::int64_t slot = work.slot(p);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int64_t at = slot * kBlockSize + warp * 16 + lane / 4 + r * 8;
      if (lane % 4 == 0) {
        p.partial_max[at] = rows.max[r];
        p.partial_weight[at] = rows.weight[r];
      }
      if (threadIdx.x == 0) p.partial_padded[slot] = rows.padded;
#pragma unroll
      for (int n = 0; n < Rows::kColumns; ++n)
        if (n * 8 < p.head_dim)
          *reinterpret_cast<float2*>(p.partial_sum + at * p.head_dim + n * 8 + rows.pair()) =
              make_float2(rows.acc[n][2 * r], rows.acc[n][2 * r + 1]);
    }
    combine_chunks<T, typename Rows::Exponent, kMra2MmaThreads>(p, work, shared_flag);
    return;
  }

  const float row_max = p.row_max[row];
  const float low_weight = p.sparse ? 0.0f : p.low_weight[row];
  if (length == 0)
    __syncthreads();  // the query tile was never waited for by the others
  else
    __syncwarp();  // the warp's other lanes have read it
  FinalFactors factors[2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
    factors[r] =
        final_factors<typename Rows::Exponent>(p, row_max, low_weight, rows.max[r], rows.weight[r], rows.padded, length == 0);
  rows.store(p, static_cast<T*>(p.context) + work.origin, static_cast<std::int64_t>(work.chunk.row) * kBlockSize + warp * 16,
             work.chunk.bits >> warp * 16, factors, p.sparse ? nullptr : p.low_sum + row * p.head_dim);
}

}  // namespace mra::cuda
