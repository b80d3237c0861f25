// One call of mra::Mra2Attention as the kernels see it: sizes, pointers, and where each intermediate lies in the workspace.
#pragma once

#include <algorithm>

#include "common/cuda/device.cuh"
#include "common/cuda/workspace.cuh"
#include "mra2_attention/cuda/mra2_attention_cuda.h"

namespace mra::cuda {

static_assert(kBlockSize == kWarp, "one lane per token of a block");

// A run of selected key blocks of one query block, handled by one thread block. All that it needs to begin is here, in one load.
struct alignas(16) Chunk {
  std::uint16_t row;     // query block
  std::uint16_t begin;   // first entry of the row's list
  std::uint16_t length;  // entries; 0 for a row without a selected block
  std::uint16_t parts;   // chunks of this row; 0: this is none, and neither are those after it
  std::int32_t slot;     // the first partial result of a row of several chunks
  std::uint32_t bits;    // the row's token_bits
};
static_assert(sizeof(Chunk) == 16);

// An entry of a list: the number of a key block, and whether none of its tokens is padding, which saves a look at them.
constexpr std::uint16_t kFullBlock = 0x8000;
constexpr std::uint16_t kBlockNumber = 0x7fff;
constexpr int kMra2CudaMaxBlocks = static_cast<int>(kMra2CudaMaxSeqLen / kBlockSize);
static_assert(kMra2CudaMaxBlocks <= kBlockNumber + 1, "block numbers fit");

// How far the search for a head's threshold has come.
struct alignas(16) Search {
  std::uint32_t key;    // of the threshold, as far as it is known, from the top; then zeros
  std::uint32_t rank;   // of the threshold among the keys that agree in that, from 1; 0: it is found
  std::int32_t cutoff;  // as in Threshold
  std::uint32_t unused;
};

constexpr int kArrivals = 4;  // steps of the selection in which the last thread block of a head goes on alone

// Passed to the kernels by value. "heads" below is batch * num_heads, nb the blocks of a sequence.
struct Mra2Problem {
  const void* query;         // T [batch, seq_len, hidden]
  const void* key;           // T [batch, seq_len, hidden]
  const void* value;         // T [batch, seq_len, hidden]
  const std::int32_t* mask;  // [batch, seq_len]
  void* context;             // T [batch, seq_len, hidden]
  std::int64_t seq_len;
  std::int64_t heads;
  int num_heads;
  int head_dim;
  int hidden;
  int nb;
  int selected;     // T: blocks selected per head, at least 1 and at most nb * nb
  int list_stride;  // entries reserved for a row's list: min(nb, T)
  int chunk_tiles;  // entries per chunk at most
  int chunk_bound;  // chunks per head at most
  int slots;        // partial results per head at most
  int first_n;      // initial_prior_first_n_blocks, capped at nb
  int diagonal;     // blocks on each side of the diagonal that are preferred; -1: none
  bool sparse;
  float scale;

  // Workspace.
  float* pooled_query;            // [heads, nb, head_dim]
  float* pooled_key;              // [heads, nb, head_dim]
  float* pooled_value;            // [heads, nb, head_dim]
  std::uint32_t* token_bits;      // [batch, nb]; bit i: token i of the block is no padding
  float* logits;                  // [heads, nb, nb], steps 3 and 5
  float* row_max;                 // [heads, nb], step 4
  std::uint32_t* first_counts;    // [heads, 256], of the leading byte of the score keys
  std::uint32_t* next_counts;     // [heads, 2, 4096], of the 12 bits after it, and of the 12 after those
  Search* searches;               // [heads]
  std::uint32_t* head_arrivals;   // [heads, kArrivals]
  std::uint32_t* row_arrivals;    // [heads, nb]
  std::uint16_t* lists;           // [heads, nb, list_stride]; selected key blocks, ascending, with kFullBlock
  std::int32_t* row_counts;       // [heads, nb]
  Chunk* chunks;                  // [heads, chunk_bound], longest first
  float* low_sum;                 // [heads, nb, head_dim]; sum over unselected b of c_b e^(L - r) v̂_b
  float* low_weight;              // [heads, nb]; sum over unselected b of c_b e^(L - r)
  float* partial_sum;             // [heads, slots, 32, head_dim]
  float* partial_max;             // [heads, slots, 32]
  float* partial_weight;          // [heads, slots, 32]
  std::uint32_t* partial_padded;  // [heads, slots]; whether a key of the chunk is padding
};

// Whether every block is selected, as where the budget is more than a short text has: then there is nothing to choose.
inline bool is_dense(const Mra2Problem& p) { return p.selected == p.nb * p.nb; }

constexpr std::int64_t kMinChunkTiles = 8;

// Chunks of at most 8 tiles, and of at most about twice the mean list where lists are long: partial results then take no more
// memory than about one float32 context.
inline std::int64_t chunk_tiles(std::int64_t nb, std::int64_t selected) {
  std::int64_t tiles = kMinChunkTiles;
  while (tiles * nb < 2 * selected) tiles *= 2;
  return tiles;
}

inline Mra2Problem make_problem(const Mra2AttentionParams& params) {
  Mra2Problem p{};
  p.query = params.query;
  p.key = params.key;
  p.value = params.value;
  p.mask = params.attention_mask;
  p.context = params.context;
  const std::int64_t nb = params.blocks_per_seq();
  const std::int64_t selected = params.selected_blocks();
  const std::int64_t tiles = chunk_tiles(nb, selected);
  p.seq_len = params.seq_len;
  p.heads = params.batch * params.num_heads;
  p.num_heads = static_cast<int>(params.num_heads);
  p.head_dim = static_cast<int>(params.head_dim());
  p.hidden = static_cast<int>(params.hidden_size);
  p.nb = static_cast<int>(nb);
  p.selected = static_cast<int>(selected);
  p.list_stride = static_cast<int>(selected < nb ? selected : nb);
  p.chunk_tiles = static_cast<int>(tiles);
  // A row of n entries has 1 + (n - 1) / tiles chunks, and one of n > tiles at most 2 n / (tiles + 1). With tiles >= 2 selected / nb
  // these sums are bounded by what follows, which never shrinks where seq_len or num_blocks grow.
  p.chunk_bound = static_cast<int>(nb + std::min(nb / 2, selected / kMinChunkTiles));
  p.slots = static_cast<int>(std::min(nb, 2 * selected / (kMinChunkTiles + 1)));
  const std::int64_t first_n = params.initial_prior_first_n_blocks;
  p.first_n = static_cast<int>(first_n < nb ? first_n : nb);
  const std::int64_t diagonal_n = params.initial_prior_diagonal_n_blocks;
  p.diagonal = diagonal_n > 0 ? static_cast<int>(diagonal_n / 2 < nb ? diagonal_n / 2 : nb) : -1;
  p.sparse = params.approx_mode == static_cast<std::int64_t>(ApproxMode::kSparse);
  p.scale = params.scale;
  return p;
}

// Assigns the workspace's pointers, in one order for whatever hands them out.
template <typename Allocator>
void lay_out(Mra2Problem& p, Allocator& arena) {
  const std::int64_t nb = p.nb;
  const std::int64_t rows = p.heads * nb;
  const std::int64_t slots = p.heads * p.slots * kBlockSize;
  arena.take(p.pooled_query, rows * p.head_dim);
  arena.take(p.pooled_key, rows * p.head_dim);
  arena.take(p.pooled_value, rows * p.head_dim);
  arena.take(p.token_bits, p.heads / p.num_heads * nb);
  arena.take(p.logits, rows * nb);
  arena.take(p.row_max, rows);
  arena.take(p.first_counts, p.heads * 256);
  arena.take(p.next_counts, p.heads * 2 * 4096);
  arena.take(p.searches, p.heads);
  arena.take(p.head_arrivals, p.heads * kArrivals);
  arena.take(p.row_arrivals, rows);
  arena.take(p.lists, rows * p.list_stride);
  arena.take(p.row_counts, rows);
  arena.take(p.chunks, p.heads * p.chunk_bound);
  arena.take(p.low_sum, rows * p.head_dim);
  arena.take(p.low_weight, rows);
  arena.take(p.partial_sum, slots * p.head_dim);
  arena.take(p.partial_max, slots);
  arena.take(p.partial_weight, slots);
  arena.take(p.partial_padded, p.heads * p.slots);
}

constexpr int kSelectThreads = 512;  // of launch 2
constexpr int kSelectWarps = kSelectThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// Order-preserving map from float to unsigned; -0 equals +0, NaN is the largest, as in torch.topk.
__device__ __forceinline__ std::uint32_t order_key(float score) {
  const float positive_zero = score + 0.0f;
  if (positive_zero != positive_zero) return 0xffffffffu;
  const std::uint32_t bits = __float_as_uint(positive_zero);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Step 6 for pair (row, column) with logit `logit`.
__device__ __forceinline__ std::uint32_t score_key(const Mra2Problem& p, float logit, float row_max, int row, int column) {
  float score = logit - row_max;
  if (p.diagonal >= 0 && abs(row - column) <= p.diagonal) score += kPriorBonus;
  if (row < p.first_n) score += kPriorBonus;
  if (column < p.first_n) score += kPriorBonus;
  return order_key(score);
}

// Whether pair `index` (row-major) with `key` is among the selected.
struct Threshold {
  std::uint32_t key;
  std::int32_t cutoff;  // of pairs that equal the key, those up to this index are selected
  __device__ __forceinline__ bool selects(std::uint32_t other, std::int32_t index) const {
    return other > key || (other == key && index <= cutoff);
  }
};

}  // namespace mra::cuda
