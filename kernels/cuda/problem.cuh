// One call as the kernels see it: sizes, pointers, and where each intermediate lies in the workspace.
#pragma once

#include "../mra2_attention.h"
#include "device.cuh"

namespace mra::cuda {

constexpr int kWarp = 32;
static_assert(kBlockSize == kWarp, "one lane per token of a block");

// A run of selected key blocks of one query block, handled by one thread block.
struct Chunk {
  std::uint16_t row;     // query block
  std::uint16_t begin;   // first entry of the row's list
  std::uint16_t length;  // entries; 0 for a row without a selected block
  std::uint16_t parts;   // chunks of this row
};
static_assert(sizeof(Chunk) == 8);
static_assert(kMaxSeqLen / kBlockSize <= 65535, "block numbers fit 16 bits");

// Passed to the kernels by value. "heads" below is batch * num_heads, nb the blocks of a sequence.
struct Problem {
  const void* query;           // T [batch, seq_len, hidden]
  const void* key;             // T [batch, seq_len, hidden]
  const void* value;           // T [batch, seq_len, hidden]
  const std::int32_t* mask;    // [batch, seq_len]
  void* context;               // T [batch, seq_len, hidden]
  std::int64_t seq_len;
  std::int64_t heads;
  int num_heads;
  int head_dim;
  int hidden;
  int nb;
  int selected;    // T: blocks selected per head, at least 1 and at most nb * nb
  int list_stride; // entries reserved for a row's list: min(nb, T)
  int chunk_tiles; // entries per chunk at most
  int chunk_bound; // chunks per head at most
  int slots;       // partial results per head at most
  int first_n;     // initial_prior_first_n_blocks, capped at nb
  int diagonal;    // blocks on each side of the diagonal that are preferred; -1: none
  bool sparse;
  float scale;

  // Workspace.
  float* pooled_query;           // [heads, nb, head_dim]
  float* pooled_key;             // [heads, nb, head_dim]
  float* pooled_value;           // [heads, nb, head_dim]
  std::uint32_t* token_bits;     // [batch, nb]; bit i: token i of the block is no padding
  float* logits;                 // [heads, nb, nb], steps 3 and 5
  float* row_max;                // [heads, nb], step 4
  std::uint32_t* histogram;      // [heads, 256], of the leading byte of the score keys
  std::uint32_t* head_arrivals;  // [heads]
  std::uint32_t* row_arrivals;   // [heads, nb]
  std::uint16_t* lists;          // [heads, nb, list_stride]; selected key blocks, ascending
  std::int32_t* row_counts;      // [heads, nb]
  Chunk* chunks;                 // [heads, chunk_bound], longest first
  std::int32_t* chunk_counts;    // [heads]
  std::int32_t* row_slots;       // [heads, nb]; first slot of a row of several chunks
  float* low_sum;                // [heads, nb, head_dim]; sum over unselected b of c_b e^(L - r) v̂_b
  float* low_weight;             // [heads, nb]; sum over unselected b of c_b e^(L - r)
  float* partial_sum;            // [heads, slots, 32, head_dim]
  float* partial_max;            // [heads, slots, 32]
  float* partial_weight;         // [heads, slots, 32]
  std::uint32_t* partial_padded; // [heads, slots]; whether a key of the chunk is padding
};

__host__ __device__ inline std::int64_t blocks_for(std::int64_t items, std::int64_t per_block) {
  return (items + per_block - 1) / per_block;
}

// Order-preserving map from float to unsigned; -0 equals +0, NaN is the largest, as in torch.topk.
__device__ __forceinline__ std::uint32_t order_key(float score) {
  const float positive_zero = score + 0.0f;
  if (positive_zero != positive_zero) return 0xffffffffu;
  const std::uint32_t bits = __float_as_uint(positive_zero);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Step 6 for pair (row, column) with logit `logit`.
__device__ __forceinline__ std::uint32_t score_key(const Problem& p, float logit, float row_max, int row, int column) {
  float score = logit - row_max;
  if (p.diagonal >= 0 && abs(row - column) <= p.diagonal) score += kPriorBonus;
  if (row < p.first_n) score += kPriorBonus;
  if (column < p.first_n) score += kPriorBonus;
  return order_key(score);
}

}  // namespace mra::cuda
