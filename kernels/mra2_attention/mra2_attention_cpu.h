// What the dispatcher of MRA's CPU operator and its per-instruction-set translation units share: the plan of one call.
#pragma once

#include "mra2_attention/mra2_attention.h"

namespace mra {

// One call: the params, the sizes derived from them, and where everything lies in the workspace. "Heads" counts all pairs
// of example and head, index example * num_heads + head.
struct Mra2CpuPlan {
  Mra2AttentionParams params;
  ParallelFor parallel_for;

  std::int64_t head_dim;
  std::int64_t padded_dim;   // head_dim, rounded up to 16
  std::int64_t nb;           // blocks per sequence
  std::int64_t padded_nb;    // nb, rounded up to 16
  std::int64_t heads;        // batch * num_heads
  std::int64_t selected;     // T
  std::int64_t group_heads;  // heads whose scores are in memory at once

  std::uint32_t* token_bits;  // [batch, nb]; bit i: token i of the block is not padding
  float* token_counts;        // [batch, padded_nb]
  float* packed_query;        // [group_heads, nb, 32, head_dim], as keys
  float* packed_key;          // [group_heads, nb, 32, head_dim]: each block's tokens, then zeros; null: keys are read in place
  float* packed_value;        // [group_heads, nb, 32, padded_dim]: the same
  // Tokens in half the bits; null unless the instruction set multiplies them.
  //   avx512_bf16  keys [group_heads, nb, 32, head_dim / 2], two dimensions together; values [group_heads, nb, 16, padded_dim], two
  //                tokens together
  //   avx512_fp16  queries too, [group_heads, nb, chunks of 32 dimensions, 32, 32 / 2], and what they were divided by:
  //                [group_heads, nb]
  std::uint32_t* reduced_query;
  std::uint32_t* reduced_key;
  std::uint32_t* reduced_value;
  float* query_scales;
  float* key_scales;
  float* value_scales;
  float* pooled_query;       // [heads, nb, padded_dim]; then the low-resolution sums Σ W·v̂ (shifted by row_max)
  float* pooled_key;         // [heads, head_dim, padded_nb]: transposed
  float* pooled_value;       // [heads, nb, padded_dim]
  float* row_max;            // [heads, nb]: r_a
  float* low_weight;         // [heads, nb]: Σ W, shifted by row_max
  std::int32_t* row_flags;   // [heads, nb]: kMra2RowHasBlock, kMra2RowHasPadding
  std::int32_t* row_starts;  // [heads, nb + 1]: a row's first entry in `columns`
  std::int32_t* columns;     // [heads, selected]: the selected key blocks that have tokens, row by row, ascending
  float* scores;             // [group_heads, nb, padded_nb]: L - r_a, without priors; then the low-resolution weights
};

constexpr std::int32_t kMra2RowHasBlock = 1;    // some block is selected for this row
constexpr std::int32_t kMra2RowHasPadding = 2;  // some selected block has no token: its padded keys enter the maximum as 0

namespace portable {
void run_mra2(const Mra2CpuPlan& plan) noexcept;
}
namespace avx2 {
void run_mra2(const Mra2CpuPlan& plan) noexcept;
}
namespace avx512 {
void run_mra2(const Mra2CpuPlan& plan) noexcept;
}
namespace avx512_bf16 {
void run_mra2(const Mra2CpuPlan& plan) noexcept;
}
namespace avx512_fp16 {
void run_mra2(const Mra2CpuPlan& plan) noexcept;
}

}  // namespace mra
