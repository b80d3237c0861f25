// Launch 3 for half types: attention over the selected blocks on tensor cores, two warps of 16 query rows per chunk.
#pragma once

#include "mra2_attention/cuda/softmax.cuh"

namespace mra::cuda {

constexpr int kMra2MmaThreads = 2 * kWarp;

template <int kDim>
struct Mra2MmaShape {
  static constexpr int kStages = kDim <= 64 ? 3 : 2;  // key/value tiles under way or in use
  static constexpr int kStride = kDim + 8;            // 16 bytes of padding: ldmatrix without bank conflicts
  static constexpr int kTile = kBlockSize * kStride;
  static constexpr int kMinBlocks = kDim <= 64 ? 7 : kDim <= 128 ? 5 : 2;  // per multiprocessor, as many as shared memory allows
  static constexpr bool kKeepQuery = kDim <= 128;                          // query fragments stay in registers
  static constexpr std::size_t kSharedBytes = 16 + (1 + 2 * kStages) * kTile * 2;
  static_assert((1 + kStages) * sizeof(std::uint32_t) <= 16, "the words before the tiles");
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kMra2MmaThreads, Mra2MmaShape<kDim>::kMinBlocks) mra2_mma_kernel(Mra2Problem p) {
  using Shape = Mra2MmaShape<kDim>;
  using Exponent = BinaryExponent;
  constexpr int kStride = Shape::kStride;
  constexpr int kSteps = kDim / 16;   // of 16 channels
  constexpr int kColumns = kDim / 8;  // of 8 channels
  std::uint32_t* shared_flag = reinterpret_cast<std::uint32_t*>(dynamic_shared());
  std::uint32_t* stage_bits = shared_flag + 1;                  // [kStages], the tokens of each stage's key block
  T* query_tile = reinterpret_cast<T*>(dynamic_shared() + 16);  // [32, kStride]
  T* ring = query_tile + Shape::kTile;                          // [kStages][key, value][32, kStride]

  ChunkWork work;
  if (!work.find(p)) return;
  const int length = work.chunk.length;
  const T* query = static_cast<const T*>(p.query) + work.origin;
  const T* key = static_cast<const T*>(p.key) + work.origin;
  const T* value = static_cast<const T*>(p.value) + work.origin;
  const std::uint32_t query_bits = work.chunk.bits;

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
      T* stage = ring + tile % Shape::kStages * 2 * Shape::kTile;
      load_tile<T, kDim, kStride, kMra2MmaThreads>(stage, key, block, bits, p);
      load_tile<T, kDim, kStride, kMra2MmaThreads>(stage + Shape::kTile, value, block, bits, p);
    }
    copy_async_commit();  // an empty group too, so that the count of groups under way holds
  };
  load_tile<T, kDim, kStride, kMra2MmaThreads>(query_tile, query, work.chunk.row, query_bits, p);
#pragma unroll
  for (int tile = 0; tile < Shape::kStages - 1; ++tile) load_stage(tile);

  const int group = lane / 4;  // this thread's rows are group and group + 8 of the warp's 16
  const int pair = lane % 4 * 2;
  const T* query_row = query_tile + (warp * 16 + lane % 16) * kStride + lane / 16 * 8;
  const int key_offset = (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
  const int value_offset = (lane / 8 % 2 * 8 + lane % 8) * kStride + lane / 16 * 8;
  const float scale = p.scale * Exponent::kLog;

  std::uint32_t query_fragments[Shape::kKeepQuery ? kSteps : 1][4];
  float acc[kColumns][4];
#pragma unroll
  for (int n = 0; n < kColumns; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[n][i] = 0.0f;
  float max[2] = {kLowest, kLowest};
  bool padded = false;
  float weight[2] = {0.0f, 0.0f};  // of this thread's columns; summed over the row's four threads at the end

  for (int tile = 0; tile < length; ++tile) {
    copy_async_wait<Shape::kStages - 2>();
    __syncthreads();  // tile `tile` has arrived for all, and all are done with the stage that is filled next
    load_stage(tile + Shape::kStages - 1);
    const T* key_tile = ring + tile % Shape::kStages * 2 * Shape::kTile;
    const T* value_tile = key_tile + Shape::kTile;
    const std::uint32_t key_bits = stage_bits[tile % Shape::kStages];
    if constexpr (Shape::kKeepQuery) {
      if (tile == 0) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) load_matrix_x4(query_fragments[k], query_row + k * 16);
      }
    }

    // Logits [16 rows, 32 keys].
    float logits[4][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if constexpr (!Shape::kKeepQuery) load_matrix_x4(query_fragments[0], query_row + k * 16);
      const auto& a = query_fragments[Shape::kKeepQuery ? k : 0];
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        std::uint32_t b[4];
        load_matrix_x4(b, key_tile + n * 8 * kStride + key_offset + k * 16);
        mma_m16n8k16<T>(logits[n], a, b[0], b[1]);
        mma_m16n8k16<T>(logits[n + 1], a, b[2], b[3]);
      }
    }

    const bool all_tokens = key_bits == 0xffffffffu;
    padded |= !all_tokens;
    float tile_max[2] = {kLowest, kLowest};
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        logits[n][i] *= scale;
        if (!all_tokens && (key_bits >> (n * 8 + pair + i % 2) & 1u) == 0) logits[n][i] = kLowest;
        tile_max[i / 2] = fmaxf(tile_max[i / 2], logits[n][i]);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(0xffffffffu, tile_max[r], 1));
      tile_max[r] = fmaxf(tile_max[r], __shfl_xor_sync(0xffffffffu, tile_max[r], 2));
      const float new_max = fmaxf(max[r], tile_max[r]);
      const float factor = Exponent::exp(max[r] - new_max);
      max[r] = new_max;
      weight[r] *= factor;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        acc[n][2 * r] *= factor;
        acc[n][2 * r + 1] *= factor;
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float e = Exponent::exp(logits[n][i] - max[i / 2]);
        if (!all_tokens && (key_bits >> (n * 8 + pair + i % 2) & 1u) == 0) e = 0.0f;
        weight[i / 2] += e;
        logits[n][i] = e;
      }

    // The logits' accumulators are, two by two, the left operand of the product with the values.
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const std::uint32_t a[4] = {pack<T>(logits[2 * k][0], logits[2 * k][1]), pack<T>(logits[2 * k][2], logits[2 * k][3]),
                                  pack<T>(logits[2 * k + 1][0], logits[2 * k + 1][1]),
                                  pack<T>(logits[2 * k + 1][2], logits[2 * k + 1][3])};
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

  const std::int64_t row = work.head * p.nb + work.chunk.row;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    weight[r] += __shfl_xor_sync(0xffffffffu, weight[r], 1);
    weight[r] += __shfl_xor_sync(0xffffffffu, weight[r], 2);
  }

  if (work.chunk.parts > 1) {
    const std::int64_t slot = work.slot(p);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int64_t at = slot * kBlockSize + warp * 16 + group + r * 8;
      if (lane % 4 == 0) {
        p.partial_max[at] = max[r];
        p.partial_weight[at] = weight[r];
      }
      if (threadIdx.x == 0) p.partial_padded[slot] = padded;
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
        if (n * 8 < p.head_dim)
          *reinterpret_cast<float2*>(p.partial_sum + at * p.head_dim + n * 8 + pair) =
              make_float2(acc[n][2 * r], acc[n][2 * r + 1]);
    }
    combine_chunks<T, Exponent, kMra2MmaThreads>(p, work, shared_flag);
    return;
  }

  // The result goes through this warp's rows of the query tile, so that stores to the context are 16 bytes wide.
  const float row_max = p.row_max[row];
  const float low_weight = p.sparse ? 0.0f : p.low_weight[row];
  if (length == 0)
    __syncthreads();  // the query tile was never waited for by the others
  else
    __syncwarp();  // the warp's other lanes have read it
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int token = warp * 16 + group + r * 8;
    const bool is_token = (query_bits >> token & 1u) != 0;
    const FinalFactors f = final_factors<Exponent>(p, row_max, low_weight, max[r], weight[r], padded, length == 0);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      if (n * 8 >= p.head_dim) continue;
      float2 low = make_float2(0.0f, 0.0f);
      if (!p.sparse) low = *reinterpret_cast<const float2*>(p.low_sum + row * p.head_dim + n * 8 + pair);
      const float first = acc[n][2 * r] * f.high + low.x * f.low;
      const float second = acc[n][2 * r + 1] * f.high + low.y * f.low;
      *reinterpret_cast<std::uint32_t*>(query_tile + token * kStride + n * 8 + pair) = is_token ? pack<T>(first, second) : 0u;
    }
  }
  __syncwarp();
  const int vectors = p.head_dim / 8;
  const std::int64_t first_token = static_cast<std::int64_t>(work.chunk.row) * kBlockSize + warp * 16;
  T* context = static_cast<T*>(p.context) + work.origin + first_token * p.hidden;
  for (int i = lane; i < 16 * vectors; i += kWarp) {
    const int token = i / vectors;
    const int channel = i % vectors * 8;
    if (first_token + token < p.seq_len)
      *reinterpret_cast<uint4*>(context + static_cast<std::int64_t>(token) * p.hidden + channel) =
          *reinterpret_cast<const uint4*>(query_tile + (warp * 16 + token) * kStride + channel);
  }
}

}  // namespace mra::cuda
