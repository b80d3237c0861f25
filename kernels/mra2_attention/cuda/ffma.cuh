// The last launch for float32: attention over the selected blocks in plain float32, four warps of 8 query rows per chunk.
#pragma once

#include "mra2_attention/cuda/ffma_rows.cuh"

namespace mra::cuda {

template <int kDim>
__global__ void __launch_bounds__(kFfmaThreads) mra2_ffma_kernel(Mra2Problem p) {
  using Rows = FfmaRows<kDim>;
  std::uint32_t* shared_flag = reinterpret_cast<std::uint32_t*>(dynamic_shared());

  ChunkWork work;
  if (!work.find(p)) return;
  const int length = work.chunk.length;
  const float* key = static_cast<const float*>(p.key) + work.origin;
  const float* value = static_cast<const float*>(p.value) + work.origin;

  Rows rows;
  const auto load = [&](int tile) {
    const std::uint16_t entry = work.list[tile];
    rows.load(p, key, value, entry & kBlockNumber, work.bits_of(entry));
  };
  rows.load_query(p, static_cast<const float*>(p.query) + work.origin, work.chunk.row, work.chunk.bits);
  if (length > 0)
    load(0);
  else
    copy_async_commit();
  for (int tile = 0; tile < length; ++tile) {
    rows.attend(p, work.bits_of(work.list[tile]));
    if (tile + 1 < length) load(tile + 1);
  }
  copy_async_wait<0>();
  rows.finish();

  const std::int64_t row = work.head * p.nb + work.chunk.row;
  if (work.chunk.parts > 1) {
    const std::int64_t slot = work.slot(p);
#pragma unroll
    for (int r = 0; r < kFfmaRows; ++r) {
      const std::int64_t at = slot * kBlockSize + rows.row0 + r;
      if (rows.lane == 0) {
        p.partial_max[at] = rows.max[r];
        p.partial_weight[at] = rows.weight[r];
      }
      if (threadIdx.x == 0) p.partial_padded[slot] = rows.padded;
#pragma unroll
      for (int c = 0; c < Rows::kOwn; ++c)
        if (rows.lane + c * kWarp < p.head_dim) p.partial_sum[at * p.head_dim + rows.lane + c * kWarp] = rows.acc[r][c];
    }
    combine_chunks<float, typename Rows::Exponent, kFfmaThreads>(p, work, shared_flag);
    return;
  }
  rows.store(p, static_cast<float*>(p.context) + work.origin, work.chunk.row, work.chunk.bits, p.row_max[row],
             p.sparse ? 0.0f : p.low_weight[row], p.sparse ? nullptr : p.low_sum + row * p.head_dim, length == 0);
}

}  // namespace mra::cuda
