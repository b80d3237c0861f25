// From the contract's params to the kernels' Problem, and where the intermediates lie in the workspace.
#pragma once

#include <algorithm>

#include "problem.cuh"

namespace mra::cuda {

constexpr std::int64_t kMinChunkTiles = 8;

// Chunks of at most 8 tiles, and of at most about twice the mean list where lists are long: partial results then take no more
// memory than about one float32 context.
inline std::int64_t chunk_tiles(std::int64_t nb, std::int64_t selected) {
  std::int64_t tiles = kMinChunkTiles;
  while (tiles * nb < 2 * selected) tiles *= 2;
  return tiles;
}

// Hands out the workspace, from a null base to count its bytes.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <typename T>
  void take(T*& pointer, std::int64_t count) {
    constexpr std::size_t kLine = 128;
    if (base_ != nullptr) pointer = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  std::size_t bytes_ = 0;
};

inline Problem make_problem(const Mra2AttentionParams& params) {
  Problem p{};
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
void lay_out(Problem& p, Allocator& arena) {
  const std::int64_t nb = p.nb;
  const std::int64_t rows = p.heads * nb;
  const std::int64_t slots = p.heads * p.slots * kBlockSize;
  arena.take(p.pooled_query, rows * p.head_dim);
  arena.take(p.pooled_key, rows * p.head_dim);
  arena.take(p.pooled_value, rows * p.head_dim);
  arena.take(p.token_bits, p.heads / p.num_heads * nb);
  arena.take(p.logits, rows * nb);
  arena.take(p.row_max, rows);
  arena.take(p.histogram, p.heads * 256);
  arena.take(p.head_arrivals, p.heads);
  arena.take(p.row_arrivals, rows);
  arena.take(p.lists, rows * p.list_stride);
  arena.take(p.row_counts, rows);
  arena.take(p.chunks, p.heads * p.chunk_bound);
  arena.take(p.chunk_counts, p.heads);
  arena.take(p.row_slots, rows);
  arena.take(p.low_sum, rows * p.head_dim);
  arena.take(p.low_weight, rows);
  arena.take(p.partial_sum, slots * p.head_dim);
  arena.take(p.partial_max, slots);
  arena.take(p.partial_weight, slots);
  arena.take(p.partial_padded, p.heads * p.slots);
}

}  // namespace mra::cuda
