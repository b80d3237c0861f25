// Launch 2: low-resolution logits and the selection of the T best block pairs (steps 3-7), then the low-resolution part of the softmax.
//
// A thread block computes 64 rows of a head's logits. The one that finishes a head last goes on to select: a radix select over
// order-preserving keys, 8 + 12 + 12 bits, the first byte's histogram gathered by all blocks of the head. Everything is float32.
#pragma once

#include "common/cuda/arrival.cuh"
#include "mra2_attention/cuda/low_resolution.cuh"
#include "mra2_attention/cuda/problem.cuh"

namespace mra::cuda {

constexpr int kRowTile = 64;    // rows of logits per thread block
constexpr int kDepthTile = 32;  // channels per step
constexpr int kDepthStride = kDepthTile + 4;
constexpr int kFirstBins = 256;
constexpr int kBins = 4096;

// Shared memory: a few words that outlive the steps, then each step's own use of the rest.
struct SelectShared {
  std::uint32_t warp_totals[kSelectWarps];
  std::uint32_t found_bin;
  std::uint32_t found_rank;
  std::uint32_t last;
  std::int32_t cutoff;
  std::uint32_t slot_count;
  std::uint32_t chunk_count;
  std::uint32_t class_offset[9];
};
constexpr std::size_t kSelectHeader = 128;
static_assert(sizeof(SelectShared) <= kSelectHeader);

inline std::size_t select_shared_bytes(int head_dim) {
  const std::size_t needs[] = {
      (kRowTile + 4 * kWarp) * kDepthStride * sizeof(float),
      kFirstBins * kWarp * sizeof(std::uint32_t),
      kBins * sizeof(std::uint32_t),
      low_resolution_shared_bytes(head_dim),
  };
  std::size_t most = 0;
  for (const std::size_t bytes : needs) most = bytes > most ? bytes : most;
  return kSelectHeader + most;
}

// Steps 3-5 for rows [row0, row0 + 16 kRows) of `head`. A warp owns kRows rows (warp + 16 i), a lane kColumns columns (lane + 32 j)
// per step; short sequences take smaller tiles.
template <int kRows, int kColumns>
__device__ __forceinline__ void logits_tile(const Mra2Problem& p, std::int64_t head, int row0, float* shared) {
  constexpr int kTileRows = kRows * kSelectWarps;
  constexpr int kTileColumns = kColumns * kWarp;
  float* a_tile = shared;                             // [kTileRows, 36]
  float* b_tile = shared + kTileRows * kDepthStride;  // [kTileColumns, 36]
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const float* query = p.pooled_query + head * p.nb * p.head_dim;
  const float* key = p.pooled_key + head * p.nb * p.head_dim;
  const std::uint32_t* bits = p.token_bits + head / p.num_heads * p.nb;
  float* logits = p.logits + head * p.nb * p.nb;

  float row_max[kRows];
  bool row_empty[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = row0 + warp + kSelectWarps * i;
    row_max[i] = -INFINITY;
    row_empty[i] = row < p.nb && bits[row] == 0;
  }

  for (int column0 = 0; column0 < p.nb; column0 += kTileColumns) {
    float acc[kRows][kColumns] = {};
    for (int depth0 = 0; depth0 < p.head_dim; depth0 += kDepthTile) {
      __syncthreads();
      constexpr int kVectors = kDepthTile / 4;
      for (int i = static_cast<int>(threadIdx.x); i < (kTileRows + kTileColumns) * kVectors; i += kSelectThreads) {
        const int line = i / kVectors;
        const int depth = depth0 + i % kVectors * 4;
        const bool is_a = line < kTileRows;
        const int block = is_a ? row0 + line : column0 + line - kTileRows;
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (block < p.nb && depth < p.head_dim)
          value = *reinterpret_cast<const float4*>((is_a ? query : key) + static_cast<std::int64_t>(block) * p.head_dim + depth);
        *reinterpret_cast<float4*>(shared + line * kDepthStride + i % kVectors * 4) = value;
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
        if (row_empty[i] || column_empty) logit = __fsub_rn(logit, kMaskedBlockPenalty);
        logits[static_cast<std::int64_t>(row) * p.nb + column] = logit;
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

// Adds the leading bytes of rows [row0, row0 + 64) to the head's histogram. Each lane counts in a bank of its own.
__device__ __forceinline__ void first_histogram(const Mra2Problem& p, std::int64_t head, int row0, std::uint32_t* counts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int i = static_cast<int>(threadIdx.x); i < kFirstBins * kWarp; i += kSelectThreads) counts[i] = 0;
  __syncthreads();
  for (int row = row0 + warp; row < min(row0 + kRowTile, p.nb); row += kSelectWarps) {
    const float* logits = p.logits + (head * p.nb + row) * p.nb;
    const float row_max = p.row_max[head * p.nb + row];
#pragma unroll 4
    for (int column = lane; column < p.nb; column += kWarp)
      atomicAdd(&counts[(score_key(p, logits[column], row_max, row, column) >> 24) * kWarp + lane], 1u);
  }
  __syncthreads();
  const int bin = static_cast<int>(threadIdx.x);
  if (bin < kFirstBins) {
    std::uint32_t total = 0;
    for (int i = 0; i < kWarp; ++i) total += counts[bin * kWarp + (i + bin) % kWarp];
    if (total != 0) atomicAdd(&p.histogram[head * kFirstBins + bin], total);
  }
}

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

// Counts, over all pairs whose key starts with `prefix` (the bits from `shift + 12` up), the 12 bits from `shift`.
__device__ __forceinline__ void next_histogram(const Mra2Problem& p, std::int64_t head, std::uint32_t prefix, int shift,
                                               std::uint32_t* counts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSelectThreads) counts[i] = 0;
  __syncthreads();
  for (int row = warp; row < p.nb; row += kSelectWarps) {
    const float* logits = p.logits + (head * p.nb + row) * p.nb;
    const float row_max = load_coherent(p.row_max + head * p.nb + row);
#pragma unroll 4
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      const int column = column0 + lane;
      const std::uint32_t key = column < p.nb ? score_key(p, load_coherent(logits + column), row_max, row, column) : 0u;
      const bool counted = column < p.nb && key >> (shift + 12) == prefix;
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
}

// Index of the `rank`-th pair (from 1, row-major) whose key equals `key`.
__device__ __forceinline__ std::int32_t tie_cutoff(const Mra2Problem& p, std::int64_t head, std::uint32_t key, std::uint32_t rank,
                                                   SelectShared& header) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  std::int32_t* row_ties = p.row_counts + head * p.nb;  // the counts proper are written later
  for (int row = warp; row < p.nb; row += kSelectWarps) {
    const float* logits = p.logits + (head * p.nb + row) * p.nb;
    const float row_max = load_coherent(p.row_max + head * p.nb + row);
    int ties = 0;
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      const int column = column0 + lane;
      const bool tie = column < p.nb && score_key(p, load_coherent(logits + column), row_max, row, column) == key;
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
    const float row_max = load_coherent(p.row_max + head * p.nb + row);
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      const int column = column0 + lane;
      const bool tie = column < p.nb && score_key(p, load_coherent(logits + column), row_max, row, column) == key;
      const unsigned lanes = __ballot_sync(kAllLanes, tie);
      const std::uint32_t own_rank = before + static_cast<std::uint32_t>(__popc(lanes & ((2u << lane) - 1u)));
      if (tie && own_rank == rank) header.cutoff = row * p.nb + column;
      before += static_cast<std::uint32_t>(__popc(lanes));
      if (before >= rank) break;
    }
  }
  __syncthreads();
  return header.cutoff;
}

// Step 7: the key of the T-th largest score, and where its ties are cut.
__device__ __forceinline__ Threshold find_threshold(const Mra2Problem& p, std::int64_t head, SelectShared& header,
                                                    std::uint32_t* counts) {
  Threshold threshold{0u, 0x7fffffff};
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kFirstBins) counts[thread] = load_coherent(p.histogram + head * kFirstBins + thread);
  __syncthreads();
  std::uint32_t rank = static_cast<std::uint32_t>(p.selected);
  int shift = 24;
  find_bin(counts, kFirstBins, rank, header);
  while (true) {
    const std::uint32_t bin = header.found_bin;
    rank = header.found_rank;
    threshold.key |= bin << shift;
    const std::uint32_t in_bin = counts[bin];
    __syncthreads();
    if (rank == in_bin) return threshold;  // the whole bin is selected: its lowest key is the threshold
    if (shift == 0) break;
    shift -= 12;
    next_histogram(p, head, threshold.key >> (shift + 12), shift, counts);
    find_bin(counts, kBins, rank, header);
  }
  threshold.cutoff = tie_cutoff(p, head, threshold.key, rank, header);
  return threshold;
}

// The selected blocks of every row, ascending, and the chunks that the attention kernel takes them in.
__device__ __forceinline__ void build_lists(const Mra2Problem& p, std::int64_t head, const Threshold& threshold,
                                            SelectShared& header, std::uint32_t* full_blocks) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  std::int32_t* row_counts = p.row_counts + head * p.nb;
  if (threadIdx.x < 9) header.class_offset[threadIdx.x] = 0;
  if (threadIdx.x == 0) header.slot_count = 0;
  const std::uint32_t* bits = p.token_bits + head / p.num_heads * p.nb;
  for (int column0 = warp * kWarp; column0 < p.nb; column0 += kSelectThreads) {
    const unsigned full = __ballot_sync(kAllLanes, column0 + lane < p.nb && bits[column0 + lane] == 0xffffffffu);
    if (lane == 0) full_blocks[column0 / kWarp] = full;  // [nb / 32], of 32 blocks each
  }
  __syncthreads();
  for (int row = warp; row < p.nb; row += kSelectWarps) {
    const float* logits = p.logits + (head * p.nb + row) * p.nb;
    const float row_max = load_coherent(p.row_max + head * p.nb + row);
    std::uint16_t* list = p.lists + (head * p.nb + row) * p.list_stride;
    int count = 0;
#pragma unroll 4
    for (int column0 = 0; column0 < p.nb; column0 += kWarp) {
      const int column = column0 + lane;
      const bool selected = column < p.nb && threshold.selects(score_key(p, load_coherent(logits + column), row_max, row, column),
                                                               row * p.nb + column);
      const unsigned lanes = __ballot_sync(kAllLanes, selected);
      const std::uint32_t is_full = full_blocks[column0 / kWarp] >> lane & 1u;
      if (selected) list[count + __popc(lanes & ((1u << lane) - 1u))] = static_cast<std::uint16_t>(column | is_full << 15);
      count += __popc(lanes);
    }
    if (lane == 0) row_counts[row] = count;
  }
  __syncthreads();

  // Chunks sorted by length in nine classes: full ones, then by eighths of a full one, empty ones last.
  const int full = p.chunk_tiles;
  for (int row = static_cast<int>(threadIdx.x); row < p.nb; row += kSelectThreads) {
    const int count = row_counts[row];
    if (count >= full) atomicAdd(&header.class_offset[0], static_cast<std::uint32_t>(count / full));
    if (count % full != 0 || count == 0) atomicAdd(&header.class_offset[8 - count % full * 8 / full], 1u);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    std::uint32_t total = 0;
    for (int i = 0; i < 9; ++i) {
      const std::uint32_t in_class = header.class_offset[i];
      header.class_offset[i] = total;
      total += in_class;
    }
    header.chunk_count = total;
  }
  __syncthreads();
  // The order within a class and the slots may differ from run to run; no result depends on them.
  Chunk* chunks = p.chunks + head * p.chunk_bound;
  for (int row = static_cast<int>(threadIdx.x); row < p.nb; row += kSelectThreads) {
    const int count = row_counts[row];
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
  for (int rank = static_cast<int>(header.chunk_count + threadIdx.x); rank < p.chunk_bound; rank += kSelectThreads)
    *reinterpret_cast<uint4*>(chunks + rank) = make_uint4(0, 0, 0, 0);
}

template <bool kHalfTypes>
__global__ void __launch_bounds__(kSelectThreads, 2) mra2_select_kernel(Mra2Problem p, int row_tiles) {
  SelectShared& header = *reinterpret_cast<SelectShared*>(dynamic_shared());
  unsigned char* scratch = dynamic_shared() + kSelectHeader;
  const std::int64_t head = blockIdx.x / row_tiles;
  const int row0 = static_cast<int>(blockIdx.x % row_tiles) * kRowTile;

  if (p.nb <= kSelectWarps)
    logits_tile<1, 1>(p, head, row0, reinterpret_cast<float*>(scratch));
  else if (p.nb <= kWarp)
    logits_tile<2, 1>(p, head, row0, reinterpret_cast<float*>(scratch));
  else if (p.nb <= 2 * kWarp)
    logits_tile<4, 2>(p, head, row0, reinterpret_cast<float*>(scratch));
  else
    logits_tile<4, 4>(p, head, row0, reinterpret_cast<float*>(scratch));
  __syncthreads();
  first_histogram(p, head, row0, reinterpret_cast<std::uint32_t*>(scratch));
  if (!arrives_last(p.head_arrivals + head, static_cast<std::uint32_t>(row_tiles), &header.last)) return;

  const Threshold threshold = find_threshold(p, head, header, reinterpret_cast<std::uint32_t*>(scratch));
  build_lists(p, head, threshold, header, reinterpret_cast<std::uint32_t*>(scratch));
  if (p.sparse) return;
  if constexpr (kHalfTypes)
    low_resolution_mma(p, head, threshold, scratch);
  else
    low_resolution(p, head, threshold, reinterpret_cast<float*>(scratch));
}

}  // namespace mra::cuda
