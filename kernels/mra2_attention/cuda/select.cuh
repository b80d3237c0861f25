// Between pooling and attention: low-resolution logits, the selection of the T best block pairs (steps 3 to 7), the lists of what is
// selected, and the low-resolution part of the softmax over the rest (step 10).
//
// A thread block has 64 rows of a head. Up to 64 blocks, 2048 tokens, that is the whole head, and one launch does all. Longer sequences
// take four: what a head has to know of all its rows is known where the next one begins.
#pragma once

#include "mra2_attention/cuda/lists.cuh"
#include "mra2_attention/cuda/logits.cuh"
#include "mra2_attention/cuda/low_resolution.cuh"

namespace mra::cuda {

// Of all kernels here.
inline std::size_t select_shared_bytes(int head_dim, bool half_types) {
  const std::size_t needs[] = {
      kLogitsSharedBytes,
      kFirstBins * kWarp * sizeof(std::uint32_t),
      kBins * sizeof(std::uint32_t),
      half_types ? kLowMmaSharedBytes : low_resolution_shared_bytes(head_dim),
  };
  std::size_t most = 0;
  for (const std::size_t bytes : needs) most = bytes > most ? bytes : most;
  return kSelectHeader + most;
}

// The lists, and with them what is not selected.
template <bool kHalfTypes>
__device__ __forceinline__ void use_threshold(const Mra2Problem& p, const RowTile& tile, SelectShared& header, void* scratch) {
  const Threshold threshold{header.search.key, header.search.cutoff};
  if (p.sparse) {
    make_lists(p, tile, threshold, static_cast<std::uint32_t*>(scratch));
  } else if constexpr (kHalfTypes) {
    make_lists_and_low_resolution(p, tile, threshold, scratch);
  } else {
    make_lists(p, tile, threshold, static_cast<std::uint32_t*>(scratch));
    low_resolution(p, tile, threshold, static_cast<float*>(scratch));
  }
  if (tile.is_last(p, 3, header)) make_chunks(p, tile.head, header);
}

// Everything, where a thread block has a whole head.
template <bool kHalfTypes>
__global__ void __launch_bounds__(kSelectThreads, 1) mra2_select_kernel(Mra2Problem p) {
  SelectShared& header = *reinterpret_cast<SelectShared*>(dynamic_shared());
  unsigned char* scratch = dynamic_shared() + kSelectHeader;
  const RowTile tile(p, 1);
  make_logits(p, tile, reinterpret_cast<float*>(scratch));
  first_bits(p, tile, header, reinterpret_cast<std::uint32_t*>(scratch));
  next_bits(p, tile, 12, header, reinterpret_cast<std::uint32_t*>(scratch));
  next_bits(p, tile, 0, header, reinterpret_cast<std::uint32_t*>(scratch));
  use_threshold<kHalfTypes>(p, tile, header, scratch);
}

// The same in four launches: the logits and the first bits of the threshold; twice further bits; what follows from it.
__global__ void __launch_bounds__(kSelectThreads, 2) mra2_logits_kernel(Mra2Problem p, int row_tiles) {
  SelectShared& header = *reinterpret_cast<SelectShared*>(dynamic_shared());
  unsigned char* scratch = dynamic_shared() + kSelectHeader;
  const RowTile tile(p, row_tiles);
  for (int i = tile.row0 / kRowTile * kSelectThreads + static_cast<int>(threadIdx.x); i < 2 * kBins;
       i += row_tiles * kSelectThreads)
    p.next_counts[tile.head * 2 * kBins + i] = 0;
  make_logits(p, tile, reinterpret_cast<float*>(scratch));
  first_bits(p, tile, header, reinterpret_cast<std::uint32_t*>(scratch));
}

__device__ __forceinline__ void resume(const Mra2Problem& p, const RowTile& tile, SelectShared& header) {
  if (threadIdx.x == 0) header.search = p.searches[tile.head];
  __syncthreads();
}

__global__ void __launch_bounds__(kSelectThreads, 2) mra2_refine_kernel(Mra2Problem p, int row_tiles, int shift) {
  SelectShared& header = *reinterpret_cast<SelectShared*>(dynamic_shared());
  const RowTile tile(p, row_tiles);
  resume(p, tile, header);
  next_bits(p, tile, shift, header, reinterpret_cast<std::uint32_t*>(dynamic_shared() + kSelectHeader));
}

template <bool kHalfTypes>
__global__ void __launch_bounds__(kSelectThreads, 1) mra2_lists_kernel(Mra2Problem p, int row_tiles) {
  SelectShared& header = *reinterpret_cast<SelectShared*>(dynamic_shared());
  const RowTile tile(p, row_tiles);
  resume(p, tile, header);
  use_threshold<kHalfTypes>(p, tile, header, dynamic_shared() + kSelectHeader);
}

}  // namespace mra::cuda
