// The only launch where every block is selected: dense attention, without lists and pooled vectors.
//
// Step 4 asks for the largest low-resolution logit of a row, which is part of the result by the 1e-6 of step 11. It is the mean of the
// logits of all token pairs of two blocks, so they are summed up on the way. The low resolution has nothing else to add.
#pragma once

#include "mra2_attention/cuda/ffma_rows.cuh"
#include "mra2_attention/cuda/mma_rows.cuh"

namespace mra::cuda {

template <int kDim>
struct Mra2DenseMmaShape {
  static constexpr int kWarps = kDim <= 128 ? 4 : 2;  // of 16 query rows
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kBlocks = kWarps / 2;          // query blocks
  static constexpr int kStages = kDim <= 64 ? 3 : 2;  // key/value tiles under way or in use
  static constexpr int kStride = kDim + 8;
  static constexpr int kTile = kBlockSize * kStride;
  static constexpr int kMinBlocks = kDim <= 64 ? 4 : kDim <= 128 ? 3 : 2;  // per multiprocessor
  static constexpr std::size_t kHead = (kStages + 2 * kWarps + 3) / 4 * 16;
  static constexpr std::size_t kSharedBytes = kHead + (kBlocks + 2 * kStages) * kTile * 2;
  static_assert(kSharedBytes <= 99 * 1024, "the least that a thread block may have from compute capability 8.0 on");
};

// Where a head lies in the tensors and the mask.
struct DensePlace {
  std::int64_t first_token;  // of the example
  std::int64_t origin;       // element offset of (example, token 0, head, channel 0)

  __device__ __forceinline__ DensePlace(const Mra2Problem& p, std::int64_t head) {
    const std::int64_t example = head / p.num_heads;
    first_token = example * p.seq_len;
    origin = first_token * p.hidden + (head - example * p.num_heads) * p.head_dim;
  }
  // The tokens of a block, of which there may be none; all lanes of a warp call this.
  __device__ __forceinline__ std::uint32_t read_bits(const Mra2Problem& p, int block) const {
    const std::int64_t token = static_cast<std::int64_t>(block) * kBlockSize + static_cast<int>(threadIdx.x) % kWarp;
    return __ballot_sync(kAllLanes, token < p.seq_len && p.mask[first_token + token] != 0);
  }
};

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// Makes the logit of steps 2 and 3 of the sum over two blocks' token pairs before they are scaled.
__device__ __forceinline__ float mean_factor(const Mra2Problem& p, std::uint32_t query_bits, std::uint32_t key_bits) {
  return p.scale /
         ((static_cast<float>(__popc(query_bits)) + kPoolEpsilon) * (static_cast<float>(__popc(key_bits)) + kPoolEpsilon));
}

// Half types on tensor cores: block (head, kBlocks query blocks).
template <typename T, int kDim>
__global__ void __launch_bounds__(Mra2DenseMmaShape<kDim>::kThreads, Mra2DenseMmaShape<kDim>::kMinBlocks)
    mra2_dense_mma_kernel(Mra2Problem p, int row_tiles) {
  using Shape = Mra2DenseMmaShape<kDim>;
  using Rows = MmaRows<T, kDim>;
  constexpr int kThreads = Shape::kThreads;
  constexpr int kStride = Shape::kStride;
  std::uint32_t* stage_bits =
      reinterpret_cast<std::uint32_t*>(dynamic_shared());                     // [kStages], the tokens of each stage's key block
  float* logit_sums = reinterpret_cast<float*>(stage_bits + Shape::kStages);  // [2, kWarps], of this tile and of the last one
  T* query_tile = reinterpret_cast<T*>(dynamic_shared() + Shape::kHead);      // [kBlocks * 32, kStride]
  T* ring = query_tile + Shape::kBlocks * Shape::kTile;                       // [kStages][key, value][32, kStride]

  const DensePlace place(p, blockIdx.x / static_cast<unsigned>(row_tiles));
  const int block0 = static_cast<int>(blockIdx.x % static_cast<unsigned>(row_tiles)) * Shape::kBlocks;
  const T* query = static_cast<const T*>(p.query) + place.origin;
  const T* key = static_cast<const T*>(p.key) + place.origin;
  const T* value = static_cast<const T*>(p.value) + place.origin;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;

  std::uint32_t listed_bits = 0;  // lane i holds those of tile i of 32, so that loading a tile waits for no other load
  const auto load_stage = [&](int tile) {
    if (tile < p.nb) {
      if (tile % kWarp == 0) {
#pragma unroll 8
        for (int i = 0; i < min(kWarp, p.nb - tile); ++i) {
          const std::uint32_t bits = place.read_bits(p, tile + i);
          if (lane == i) listed_bits = bits;
        }
      }
      const std::uint32_t bits = __shfl_sync(kAllLanes, listed_bits, tile % kWarp);
      if (threadIdx.x == 0) stage_bits[tile % Shape::kStages] = bits;
      T* stage = ring + tile % Shape::kStages * 2 * Shape::kTile;
      load_tile<T, kDim, kStride, kThreads>(stage, key, tile, bits, p);
      load_tile<T, kDim, kStride, kThreads>(stage + Shape::kTile, value, tile, bits, p);
    }
    copy_async_commit();  // an empty group too, so that the count of groups under way holds
  };
  std::uint32_t query_bits = 0;  // of this warp's block
#pragma unroll
  for (int i = 0; i < Shape::kBlocks; ++i) {
    const std::uint32_t bits = place.read_bits(p, block0 + i);
    load_tile<T, kDim, kStride, kThreads>(query_tile + i * Shape::kTile, query, block0 + i, bits, p);
    if (warp / 2 == i) query_bits = bits;
  }
#pragma unroll
  for (int tile = 0; tile < Shape::kStages - 1; ++tile) load_stage(tile);

  Rows rows(p, query_tile + warp * 16 * kStride);
  float row_max = -INFINITY;
  const auto take_logit = [&](int tile) {  // of this warp's block and that of `tile`: two warps have a half each
    const float* sums = logit_sums + tile % 2 * Shape::kWarps + warp / 2 * 2;
    row_max = fmaxf(row_max, sums[0] + sums[1]);
  };
  for (int tile = 0; tile < p.nb; ++tile) {
    copy_async_wait<Shape::kStages - 2>();
    __syncthreads();  // tile `tile` has arrived for all, and all are done with the stage that is filled next
    load_stage(tile + Shape::kStages - 1);
    if (tile == 0)
      rows.keep_query();
    else
      take_logit(tile - 1);
    const T* stage = ring + tile % Shape::kStages * 2 * Shape::kTile;
    const std::uint32_t key_bits = stage_bits[tile % Shape::kStages];
    const float sum = sum_of_warp(rows.template attend<true>(stage, stage + Shape::kTile, key_bits));
    if (lane == 0) logit_sums[tile % 2 * Shape::kWarps + warp] = sum * mean_factor(p, query_bits, key_bits);
  }
  copy_async_wait<0>();
  __syncthreads();
  take_logit(p.nb - 1);
  rows.finish();

  if (block0 + warp / 2 >= p.nb) return;
  FinalFactors factors[2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
    factors[r] = final_factors<typename Rows::Exponent>(p, row_max, 0.0f, rows.max[r], rows.weight[r], rows.padded, false);
  rows.store(p, static_cast<T*>(p.context) + place.origin, static_cast<std::int64_t>(block0) * kBlockSize + warp * 16,
             query_bits >> warp % 2 * 16, factors, nullptr);
}

// The same for float32: block (head, query block).
template <int kDim>
__global__ void __launch_bounds__(kFfmaThreads) mra2_dense_ffma_kernel(Mra2Problem p) {
  using Rows = FfmaRows<kDim>;
  constexpr int kWarps = kFfmaThreads / kWarp;
  float* logit_sums = reinterpret_cast<float*>(dynamic_shared());  // [kWarps], of this tile
  static_assert(kWarps * sizeof(float) <= 16, "the words before the tiles");

  const DensePlace place(p, blockIdx.x / static_cast<unsigned>(p.nb));
  const int block = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.nb));
  const float* key = static_cast<const float*>(p.key) + place.origin;
  const float* value = static_cast<const float*>(p.value) + place.origin;
  const std::uint32_t query_bits = place.read_bits(p, block);
  std::uint32_t key_bits = place.read_bits(p, 0);

  Rows rows;
  rows.load_query(p, static_cast<const float*>(p.query) + place.origin, block, query_bits);
  rows.load(p, key, value, 0, key_bits);
  float row_max = -INFINITY;
  for (int tile = 0; tile < p.nb; ++tile) {
    const std::uint32_t next_bits = place.read_bits(p, tile + 1);
    const float sum = sum_of_warp(rows.attend(p, key_bits));
    if (rows.lane == 0) logit_sums[threadIdx.x / kWarp] = sum;
    __syncthreads();
    if (tile + 1 < p.nb) rows.load(p, key, value, tile + 1, next_bits);
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += logit_sums[i];
    row_max = fmaxf(row_max, total * mean_factor(p, query_bits, key_bits));
    key_bits = next_bits;
  }
  copy_async_wait<0>();
  rows.finish();
  rows.store(p, static_cast<float*>(p.context) + place.origin, block, query_bits, row_max, 0.0f, nullptr, false);
}

}  // namespace mra::cuda
