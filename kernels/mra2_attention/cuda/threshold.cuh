// Step 7: the key of the T-th largest score of a head and where its ties are cut, by a radix select over order-preserving keys: 8 + 12 +
// 12 bits, the counts of each gathered by all thread blocks of the head.
#pragma once

#include "common/cuda/arrival.cuh"
#include "mra2_attention/cuda/problem.cuh"

namespace mra::cuda {

constexpr int kRowTile = 64;  // rows of a head that a thread block has
constexpr int kFirstBins = 256;
constexpr int kBins = 4096;
constexpr int kListClasses = 9;  // of chunks, by length

// Shared memory: a few words that outlive the steps, then each step's own use of the rest.
struct SelectShared {
  Search search;
  std::uint32_t warp_totals[kSelectWarps];
  std::uint32_t found_bin;
  std::uint32_t found_rank;
  std::uint32_t last;
  std::uint32_t slot_count;
  std::uint32_t chunk_count;
  std::uint32_t class_offset[kListClasses];
};
constexpr std::size_t kSelectHeader = 256;
static_assert(sizeof(SelectShared) <= kSelectHeader);

// Where a thread block works: rows [row0, end) of a head, which has `tiles` such blocks.
struct RowTile {
  std::int64_t head;
  int tiles;
  int row0;
  int end;

  __device__ __forceinline__ RowTile(const Mra2Problem& p, int row_tiles) : tiles(row_tiles) {
    head = blockIdx.x / static_cast<unsigned>(row_tiles);
    row0 = static_cast<int>(blockIdx.x % static_cast<unsigned>(row_tiles)) * kRowTile;
    end = min(row0 + kRowTile, p.nb);
  }
  // True in the block that is the head's last to come to `stage` of this search; what the others wrote is then visible to it.
  __device__ __forceinline__ bool is_last(const Mra2Problem& p, int stage, SelectShared& header) const {
    if (tiles == 1) {
      __syncthreads();
      return true;
    }
    return arrives_last(p.head_arrivals + head * kArrivals + stage, static_cast<std::uint32_t>(tiles), &header.last);
  }
};

// Finds the bin that holds the `rank`-th largest element (from 1): header.found_bin, and its rank in it, header.found_rank.
// Thread t owns the t-th group of bins from the top.
__device__ __forceinline__ void find_bin(const std::uint32_t* counts, int bins, std::uint32_t rank, SelectShared& header) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int per_thread = bins > kSelectThreads ? bins / kSelectThreads : 1;
  const int top = bins - 1 - static_cast<int>(threadIdx.x) * per_thread;
  std::uint32_t own = 0;
  if (top >= 0)
    for (int i = 0; i < per_thread; ++i) own += counts[top - i];
  std::uint32_t up_to = own;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const std::uint32_t other = __shfl_up_sync(kAllLanes, up_to, offset);
    if (lane >= offset) up_to += other;
  }
  if (lane == kWarp - 1) header.warp_totals[warp] = up_to;
  __syncthreads();
  for (int i = 0; i < warp; ++i) up_to += header.warp_totals[i];
  std::uint32_t above = up_to - own;
  if (above < rank && rank <= up_to) {
    int bin = top;
    while (above + counts[bin] < rank) above += counts[bin--];
    header.found_bin = static_cast<std::uint32_t>(bin);
    header.found_rank = rank - above;
  }
  __syncthreads();
}

// Goes on to the bin that holds what is searched for; `counts` are of the bits from `shift`.
__device__ __forceinline__ void narrow(const std::uint32_t* counts, int bins, int shift, SelectShared& header) {
  find_bin(counts, bins, header.search.rank, header);
  if (threadIdx.x == 0) {
    header.search.key |= header.found_bin << shift;
    // Where the whole bin is selected its lowest key is the threshold.
    header.search.rank = header.found_rank == counts[header.found_bin] ? 0 : header.found_rank;
  }
  __syncthreads();
}

// The leading byte. Each lane counts in a bank of its own.
__device__ __forceinline__ void first_bits(const Mra2Problem& p, const RowTile& tile, SelectShared& header, std::uint32_t* counts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int bin = static_cast<int>(threadIdx.x);
  if (bin == 0) header.search = {0u, static_cast<std::uint32_t>(p.selected), 0x7fffffff, 0u};
  for (int i = bin; i < kFirstBins * kWarp; i += kSelectThreads) counts[i] = 0;
  __syncthreads();
  for (int row = tile.row0 + warp; row < tile.end; row += kSelectWarps) {
    const float* logits = p.logits + (tile.head * p.nb + row) * p.nb;
    const float row_max = p.row_max[tile.head * p.nb + row];
#pragma unroll 4
    for (int column = lane; column < p.nb; column += kWarp)
      atomicAdd(&counts[(score_key(p, logits[column], row_max, row, column) >> 24) * kWarp + lane], 1u);
  }
  __syncthreads();
  std::uint32_t total = 0;
  if (bin < kFirstBins)
    for (int i = 0; i < kWarp; ++i) total += counts[bin * kWarp + (i + bin) % kWarp];
  std::uint32_t* of_head = p.first_counts + tile.head * kFirstBins;
  if (tile.tiles > 1 && bin < kFirstBins && total != 0) atomicAdd(of_head + bin, total);
  if (!tile.is_last(p, 0, header)) return;
  if (bin < kFirstBins) counts[bin] = tile.tiles > 1 ? load_coherent(of_head + bin) : total;
  __syncthreads();
  narrow(counts, kFirstBins, 24, header);
  if (bin == 0) p.searches[tile.head] = header.search;
}

// Index of the `rank`-th pair (from 1, row-major) whose key equals `key`, to header.search.
__device__ __forceinline__ void cut_ties(const Mra2Problem& p, std::int64_t head, SelectShared& header) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::uint32_t key = header.search.key;
  const std::uint32_t rank = header.search.rank;
  std::int32_t* row_ties = p.row_counts + head * p.nb;  // the counts proper are written later
  for (int row = warp; row < p.nb; row += kSelectWarps) {
    const float* logits = p.logits + (head * p.nb + row) * p.nb;
    const float row_max = p.row_max[head * p.nb + row];
    int ties = 0;
#pragma unroll 4
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      const int column = column0 + lane;
      const bool tie = column < p.nb && score_key(p, logits[column], row_max, row, column) == key;
      ties += __popc(__ballot_sync(kAllLanes, tie));
    }
    if (lane == 0) row_ties[row] = ties;
  }
  __syncthreads();
  if (warp == 0) {
    // The row that holds it, 32 rows at a time; then the column in it.
    std::uint32_t before = 0;
    int row = p.nb - 1;
    for (int row0 = 0; row0 < p.nb; row0 += kWarp) {
      const std::uint32_t own = row0 + lane < p.nb ? static_cast<std::uint32_t>(row_ties[row0 + lane]) : 0u;
      std::uint32_t up_to = own;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const std::uint32_t other = __shfl_up_sync(kAllLanes, up_to, offset);
        if (lane >= offset) up_to += other;
      }
      const unsigned reached = __ballot_sync(kAllLanes, before + up_to >= rank);
      if (reached != 0) {
        const int first = __ffs(static_cast<int>(reached)) - 1;
        row = row0 + first;
        before += __shfl_sync(kAllLanes, up_to - own, first);
        break;
      }
      before += __shfl_sync(kAllLanes, up_to, kWarp - 1);
    }
    const float* logits = p.logits + (head * p.nb + row) * p.nb;
    const float row_max = p.row_max[head * p.nb + row];
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      const int column = column0 + lane;
      const bool tie = column < p.nb && score_key(p, logits[column], row_max, row, column) == key;
      const unsigned lanes = __ballot_sync(kAllLanes, tie);
      const std::uint32_t own_rank = before + static_cast<std::uint32_t>(__popc(lanes & ((2u << lane) - 1u)));
      if (tie && own_rank == rank) header.search.cutoff = row * p.nb + column;
      before += static_cast<std::uint32_t>(__popc(lanes));
      if (before >= rank) break;
    }
  }
  __syncthreads();
}

// The 12 bits from `shift`, 12 and then 0, of the keys that agree in what is known; and the ties where all bits are.
__device__ __forceinline__ void next_bits(const Mra2Problem& p, const RowTile& tile, int shift, SelectShared& header,
                                          std::uint32_t* counts) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  if (header.search.rank == 0) return;
  const std::uint32_t prefix = header.search.key >> shift >> 12;
  for (int i = thread; i < kBins; i += kSelectThreads) counts[i] = 0;
  __syncthreads();
  for (int row = tile.row0 + warp; row < tile.end; row += kSelectWarps) {
    const float* logits = p.logits + (tile.head * p.nb + row) * p.nb;
    const float row_max = p.row_max[tile.head * p.nb + row];
#pragma unroll 4
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      const int column = column0 + lane;
      const std::uint32_t key = column < p.nb ? score_key(p, logits[column], row_max, row, column) : 0u;
      const bool counted = column < p.nb && key >> shift >> 12 == prefix;
      const unsigned lanes = __ballot_sync(kAllLanes, counted);
      if (lanes == 0) continue;
      // Ties are ordinary here: one addition for all lanes that agree with the first.
      const int bin = static_cast<int>(key >> shift & (kBins - 1));
      const int leader = __ffs(static_cast<int>(lanes)) - 1;
      const int leader_bin = __shfl_sync(kAllLanes, bin, leader);
      const unsigned same = __ballot_sync(kAllLanes, counted && bin == leader_bin);
      if (lane == leader)
        atomicAdd(&counts[bin], static_cast<std::uint32_t>(__popc(same)));
      else if (counted && bin != leader_bin)
        atomicAdd(&counts[bin], 1u);
    }
  }
  __syncthreads();
  if (tile.tiles > 1) {
    std::uint32_t* of_head = p.next_counts + (tile.head * 2 + (shift == 0)) * kBins;
    for (int i = thread; i < kBins; i += kSelectThreads)
      if (counts[i] != 0) atomicAdd(of_head + i, counts[i]);
    if (!tile.is_last(p, shift == 0 ? 2 : 1, header)) return;
    for (int i = thread; i < kBins; i += kSelectThreads) counts[i] = load_coherent(of_head + i);
    __syncthreads();
  }
  narrow(counts, kBins, shift, header);
  if (shift == 0 && header.search.rank != 0) cut_ties(p, tile.head, header);
  if (thread == 0) p.searches[tile.head] = header.search;
}

}  // namespace mra::cuda
