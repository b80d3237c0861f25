// One call of mra::YosoAttention as the kernels see it: sizes, pointers, and where each intermediate lies in the workspace.
#pragma once

#include <algorithm>

#include "common/cuda/device.cuh"
#include "common/cuda/workspace.cuh"
#include "yoso_attention/yoso_attention.h"

namespace mra::cuda {

// What the hash tables of the heads that are computed together may take: a compromise, not measured, between tables that stay in the L2
// cache and launches that fill the device. One head's tables may take more.
constexpr std::int64_t kYosoScratchBytes = 64 << 20;

// Passed to the kernels by value. "heads" below is batch * num_heads; a tile is 32 tokens.
struct YosoProblem {
  const void* query;                   // T [batch, seq_len, hidden]
  const void* key;                     // T [batch, seq_len, hidden]
  const void* value;                   // T [batch, seq_len, hidden]
  const std::int32_t* mask;            // [batch, seq_len]
  const std::int32_t* hash_constants;  // as in docs/operators/yoso_attention.md
  const void* conv_weight;             // T [num_heads, conv_window]
  void* context;                       // T [batch, seq_len, hidden]
  std::int64_t seq_len;
  std::int64_t heads;
  int num_heads;
  int head_dim;
  int hidden;
  int tiles;
  int code_len;
  int conv_window;

  // Mode lsh.
  int num_hash;
  int buckets;              // 2^code_len
  int table_rows;           // min(buckets, seq_len) per head and hash
  int transform_dim;        // of the fast hash; 0 for the projection
  int parts;                // of the fast hash
  int sign_words;           // 32-bit words with the signs of one row
  std::int64_t group;       // heads that are computed together
  std::int64_t first_head;  // of the group

  // Workspace, mode expectation. [0] is the queries', [1] the keys'.
  float* inverse_length[2];   // [heads, tiles * 32]; 1 / max(|x|, epsilon), 0 at padding
  std::uint32_t* token_bits;  // [batch, tiles]; bit i: token i of the tile is no padding

  // Workspace, mode lsh; "head" counts from first_head.
  std::uint16_t* codes[2];  // [group, num_hash, seq_len]
  std::uint32_t* starts;    // [group, num_hash, buckets + 1]; where a bucket's tokens begin in `order`
  std::uint32_t* order;     // [group, num_hash, seq_len]; the key tokens by bucket, in a bucket ascending
  float* table;             // [group, num_hash, table_rows, head_dim]; sums of the buckets' values
  unsigned char* spare;     // so that the size of the whole never shrinks
};

// A bucket's row in the table: its number, or where there are more buckets than tokens the place of its first token in `order`.
__host__ __device__ inline bool one_row_per_bucket(const YosoProblem& p) { return p.table_rows == p.buckets; }

inline YosoProblem make_problem(const YosoAttentionParams& params) {
  YosoProblem p{};
  p.query = params.query;
  p.key = params.key;
  p.value = params.value;
  p.mask = params.attention_mask;
  p.hash_constants = params.hash_constants;
  p.conv_weight = params.conv_weight;
  p.context = params.context;
  p.seq_len = params.seq_len;
  p.heads = params.batch * params.num_heads;
  p.num_heads = static_cast<int>(params.num_heads);
  p.head_dim = static_cast<int>(params.head_dim());
  p.hidden = static_cast<int>(params.hidden_size);
  p.tiles = static_cast<int>(blocks_for(params.seq_len, kWarp));
  p.code_len = static_cast<int>(params.hash_code_len);
  p.conv_window = static_cast<int>(params.conv_window);
  if (!params.lsh()) return p;
  p.num_hash = static_cast<int>(params.num_hash);
  p.buckets = 1 << p.code_len;
  p.table_rows = static_cast<int>(std::min<std::int64_t>(p.buckets, p.seq_len));
  if (params.fast_hash != 0) {
    p.transform_dim = static_cast<int>(params.transform_dim());
    p.parts = static_cast<int>(params.parts());
    p.sign_words = p.parts * p.transform_dim / kWarp;
  } else {
    p.sign_words = static_cast<int>(blocks_for(params.hash_bits(), kWarp));
  }
  return p;
}

// Assigns the workspace's pointers, in one order for whatever hands them out, and the size of a group.
template <typename Allocator>
void lay_out(YosoProblem& p, Allocator& arena) {
  if (p.num_hash == 0) {
    const std::int64_t rows = p.heads * p.tiles * kWarp;
    arena.take(p.inverse_length[0], rows);
    arena.take(p.inverse_length[1], rows);
    arena.take(p.token_bits, p.heads / p.num_heads * p.tiles);
    return;
  }
  // Elements per head, each array's bytes a multiple of 128, so that a group of n heads takes n times the bytes of one.
  const auto lines = [](std::int64_t count, std::int64_t per_line) { return blocks_for(count, per_line) * per_line; };
  const std::int64_t codes = lines(p.num_hash * p.seq_len, 64);
  const std::int64_t order = lines(p.num_hash * p.seq_len, 32);
  const std::int64_t starts = lines(p.num_hash * (std::int64_t{p.buckets} + 1), 32);
  const std::int64_t table = lines(std::int64_t{p.num_hash} * p.table_rows * p.head_dim, 32);
  const std::int64_t head_bytes = 2 * codes * 2 + (order + starts + table) * 4;
  // Never shrinks where a head's bytes or the number of heads grow.
  const std::int64_t bytes = std::min(p.heads * head_bytes, std::max(head_bytes, kYosoScratchBytes));
  p.group = bytes / head_bytes;
  arena.take(p.codes[0], p.group * codes);
  arena.take(p.codes[1], p.group * codes);
  arena.take(p.order, p.group * order);
  arena.take(p.starts, p.group * starts);
  arena.take(p.table, p.group * table);
  arena.take(p.spare, bytes - p.group * head_bytes);
}

// Where a head lies in the tensors.
struct HeadPlace {
  std::int64_t example;
  int number;           // of the example's heads
  std::int64_t origin;  // element offset of (example, token 0, head, channel 0)
};

__device__ __forceinline__ HeadPlace place_of(const YosoProblem& p, std::int64_t head) {
  const std::int64_t example = head / p.num_heads;
  const int number = static_cast<int>(head - example * p.num_heads);
  return {example, number, example * p.seq_len * p.hidden + static_cast<std::int64_t>(number) * p.head_dim};
}

}  // namespace mra::cuda
