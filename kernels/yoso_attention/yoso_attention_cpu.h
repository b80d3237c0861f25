// What the dispatcher of YOSO's CPU operator and its per-instruction-set translation units share: the plan of one call.
#pragma once

#include "yoso_attention/yoso_attention.h"

namespace mra {

constexpr int kYosoRows = 32;      // positions of a block: what one task hashes, packs or attends
constexpr int kYosoSlice = 16;     // columns of the values that are summed up in tables at a time
constexpr int kYosoMaxTables = 8;  // hashes whose tables are filled at a time

// One call: the params, the sizes derived from them, and where everything lies in the workspace. "Heads" counts all pairs
// of example and head, index example * num_heads + head. The tokens of an example are counted without its padding; `rows`
// of a head are its tokens, in order.
struct YosoCpuPlan {
  YosoAttentionParams params;
  ParallelFor parallel_for;

  std::int64_t head_dim;
  std::int64_t padded_dim;   // head_dim, rounded up to 16
  std::int64_t nb;           // blocks of kYosoRows positions per sequence
  std::int64_t padded_rows;  // nb * kYosoRows
  std::int64_t heads;        // batch * num_heads
  std::int64_t group_heads;  // heads that go through the stages together
  std::int64_t table_slots;  // tasks that have tables of their own
  std::int64_t tables;       // tables of each slot

  std::uint32_t* token_bits;  // [batch, nb]; bit i: position i of the block is not padding
  std::int32_t* row_starts;   // [batch, nb + 1]: the first row of each block

  // Mode expectation.
  float* keys;    // [group_heads, padded_rows, head_dim]: unit length; rows that fill up a register tile are 0
  float* values;  // [group_heads, padded_rows, padded_dim]

  // Mode lsh; slices = padded_dim / kYosoSlice.
  std::uint16_t* query_codes;  // [group_heads, num_hash, padded_rows]
  std::uint16_t* key_codes;    // [group_heads, num_hash, padded_rows]
  float* value_slices;         // [group_heads, slices, padded_rows, kYosoSlice]
  float* sum_slices;           // [group_heads, slices, padded_rows, kYosoSlice]
  float* table_memory;         // [table_slots, tables, 2^hash_code_len, kYosoSlice]
};

namespace portable {
void run_yoso(const YosoCpuPlan& plan) noexcept;
}
namespace avx2 {
void run_yoso(const YosoCpuPlan& plan) noexcept;
}
namespace avx512 {
void run_yoso(const YosoCpuPlan& plan) noexcept;
}

}  // namespace mra
