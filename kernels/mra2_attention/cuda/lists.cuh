// The selected blocks of every row as lists, and the chunks that the attention kernel takes them in.
#pragma once

#include "mra2_attention/cuda/threshold.cuh"

namespace mra::cuda {

// Which blocks hold no padding, as bits: [nb / 32] words of shared memory, of all blocks of the head's example.
__device__ __forceinline__ void find_full_blocks(const Mra2Problem& p, std::int64_t head, std::uint32_t* full_blocks) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::uint32_t* bits = p.token_bits + head / p.num_heads * p.nb;
  for (int column0 = static_cast<int>(threadIdx.x) / kWarp * kWarp; column0 < p.nb; column0 += kSelectThreads) {
    const unsigned full = __ballot_sync(kAllLanes, column0 + lane < p.nb && bits[column0 + lane] == 0xffffffffu);
    if (lane == 0) full_blocks[column0 / kWarp] = full;
  }
}

// A row's list, written by a warp from left to right.
struct ListWriter {
  std::uint16_t* list;
  int count;

  // `selected` of block column0 + lane.
  __device__ __forceinline__ void add(bool selected, int column0, const std::uint32_t* full_blocks) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const unsigned lanes = __ballot_sync(kAllLanes, selected);
    const std::uint32_t is_full = full_blocks[column0 / kWarp] >> lane & 1u;
    if (selected) list[count + __popc(lanes & ((1u << lane) - 1u))] = static_cast<std::uint16_t>((column0 + lane) | is_full << 15);
    count += __popc(lanes);
  }
};

// The lists of a thread block's rows.
__device__ __forceinline__ void make_lists(const Mra2Problem& p, const RowTile& tile, const Threshold& threshold,
                                           std::uint32_t* full_blocks) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  find_full_blocks(p, tile.head, full_blocks);
  __syncthreads();
  for (int row = tile.row0 + static_cast<int>(threadIdx.x) / kWarp; row < tile.end; row += kSelectWarps) {
    const std::int64_t at = tile.head * p.nb + row;
    const float* logits = p.logits + at * p.nb;
    const float row_max = p.row_max[at];
    ListWriter writer{p.lists + at * p.list_stride, 0};
#pragma unroll 4
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      const int column = column0 + lane;
      writer.add(column < p.nb && threshold.selects(score_key(p, logits[column], row_max, row, column), row * p.nb + column),
                 column0, full_blocks);
    }
    if (lane == 0) p.row_counts[at] = writer.count;
  }
}

// The chunks of a head, once all its lists are written: sorted by length in nine classes, full ones, then by eighths of a full one, empty
// ones last.
__device__ __forceinline__ void make_chunks(const Mra2Problem& p, std::int64_t head, SelectShared& header) {
  const int thread = static_cast<int>(threadIdx.x);
  const std::int32_t* row_counts = p.row_counts + head * p.nb;
  const std::uint32_t* bits = p.token_bits + head / p.num_heads * p.nb;
  const int full = p.chunk_tiles;
  if (thread < kListClasses) header.class_offset[thread] = 0;
  if (thread == 0) header.slot_count = 0;
  __syncthreads();
  for (int row = thread; row < p.nb; row += kSelectThreads) {
    const int count = load_coherent(row_counts + row);
    if (count >= full) atomicAdd(&header.class_offset[0], static_cast<std::uint32_t>(count / full));
    if (count % full != 0 || count == 0) atomicAdd(&header.class_offset[8 - count % full * 8 / full], 1u);
  }
  __syncthreads();
  if (thread == 0) {
    std::uint32_t total = 0;
    for (int i = 0; i < kListClasses; ++i) {
      const std::uint32_t in_class = header.class_offset[i];
      header.class_offset[i] = total;
      total += in_class;
    }
    header.chunk_count = total;
  }
  __syncthreads();
  // The order within a class and the slots may differ from run to run; no result depends on them.
  Chunk* chunks = p.chunks + head * p.chunk_bound;
  for (int row = thread; row < p.nb; row += kSelectThreads) {
    const int count = load_coherent(row_counts + row);
    const int parts = count == 0 ? 1 : (count + full - 1) / full;
    std::uint32_t slot = 0;
    if (parts > 1) slot = atomicAdd(&header.slot_count, static_cast<std::uint32_t>(parts));
    for (int part = 0; part < parts; ++part) {
      const int length = min(full, count - part * full);
      const std::uint32_t position = atomicAdd(&header.class_offset[8 - length * 8 / full], 1u);
      *reinterpret_cast<uint4*>(chunks + position) = make_uint4(static_cast<std::uint32_t>(row | part * full << 16),
                                                                static_cast<std::uint32_t>(length | parts << 16), slot, bits[row]);
    }
  }
  for (int rank = static_cast<int>(header.chunk_count) + thread; rank < p.chunk_bound; rank += kSelectThreads)
    *reinterpret_cast<uint4*>(chunks + rank) = make_uint4(0, 0, 0, 0);
}

}  // namespace mra::cuda
