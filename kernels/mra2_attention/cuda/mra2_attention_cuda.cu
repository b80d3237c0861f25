// mra::Mra2Attention on a CUDA device: lays out the workspace and launches the kernels.
#include "mra2_attention/cuda/mra2_attention_cuda.h"

#include <cinttypes>
#include <cstdint>

#include "common/cuda/launch.cuh"
#include "mra2_attention/cuda/dense.cuh"
#include "mra2_attention/cuda/ffma.cuh"
#include "mra2_attention/cuda/mma.cuh"
#include "mra2_attention/cuda/pool.cuh"
#include "mra2_attention/cuda/problem.cuh"
#include "mra2_attention/cuda/select.cuh"

namespace mra {
namespace cuda {
namespace {

// What depends on the element type, T, and on a bound of head_dim, kDim.
template <typename T, int kDim>
struct Kernels {
  static constexpr auto kSelected = mra2_mma_kernel<T, kDim>;
  static constexpr auto kDense = mra2_dense_mma_kernel<T, kDim>;

  static cudaError_t launch_selected(const Mra2Problem& p, cudaStream_t stream) {
    return launch_in_shared(kSelected, p.heads * p.chunk_bound, kMra2MmaThreads, Mra2MmaShape<kDim>::kSharedBytes, stream, p);
  }
  static cudaError_t launch_dense(const Mra2Problem& p, cudaStream_t stream) {
    using Shape = Mra2DenseMmaShape<kDim>;
    const std::int64_t row_tiles = blocks_for(p.nb, Shape::kBlocks);
    return launch_in_shared(kDense, p.heads * row_tiles, Shape::kThreads, Shape::kSharedBytes, stream, p,
                            static_cast<int>(row_tiles));
  }
};

template <int kDim>
struct Kernels<float, kDim> {
  static constexpr auto kSelected = mra2_ffma_kernel<kDim>;
  static constexpr auto kDense = mra2_dense_ffma_kernel<kDim>;

  static cudaError_t launch_selected(const Mra2Problem& p, cudaStream_t stream) {
    return launch_in_shared(kSelected, p.heads * p.chunk_bound, kFfmaThreads, Mra2FfmaShape<kDim>::kSharedBytes, stream, p);
  }
  static cudaError_t launch_dense(const Mra2Problem& p, cudaStream_t stream) {
    return launch_in_shared(kDense, p.heads * p.nb, kFfmaThreads, Mra2FfmaShape<kDim>::kSharedBytes, stream, p);
  }
};

template <typename T, int kDim>
cudaError_t launch_attention(const Mra2Problem& p, cudaStream_t stream) {
  return is_dense(p) ? Kernels<T, kDim>::launch_dense(p, stream) : Kernels<T, kDim>::launch_selected(p, stream);
}

// The launches before the attention: none where every block is selected.
template <typename T>
cudaError_t launch_selection(const Mra2Problem& p, cudaStream_t stream) {
  if (is_dense(p)) return cudaSuccess;
  const std::int64_t slices = blocks_for(3 * p.hidden / Vector<T>::kSize, kPoolThreads);
  cudaError_t error = launch_checked(mra2_pool_kernel<T>, p.heads / p.num_heads * p.nb * slices, kPoolThreads, 0, stream, p,
                                     static_cast<int>(slices));
  if (error != cudaSuccess) return error;
  constexpr bool kHalfTypes = sizeof(T) == 2;
  const std::size_t shared_bytes = select_shared_bytes(p.head_dim, kHalfTypes);
  const int row_tiles = static_cast<int>(blocks_for(p.nb, kRowTile));
  if (row_tiles == 1) return launch_checked(mra2_select_kernel<kHalfTypes>, p.heads, kSelectThreads, shared_bytes, stream, p);
  const std::int64_t blocks = p.heads * row_tiles;
  error = launch_checked(mra2_logits_kernel, blocks, kSelectThreads, shared_bytes, stream, p, row_tiles);
  for (const int shift : {12, 0})
    if (error == cudaSuccess)
      error = launch_checked(mra2_refine_kernel, blocks, kSelectThreads, shared_bytes, stream, p, row_tiles, shift);
  if (error != cudaSuccess) return error;
  return launch_checked(mra2_lists_kernel<kHalfTypes>, blocks, kSelectThreads, shared_bytes, stream, p, row_tiles);
}

template <typename T>
cudaError_t launch_all(const Mra2Problem& p, cudaStream_t stream) {
  const cudaError_t error = launch_selection<T>(p, stream);
  if (error != cudaSuccess) return error;
  // The one place where head_dim becomes a constant.
  if (p.head_dim <= 32) return launch_attention<T, 32>(p, stream);
  if (p.head_dim <= 64) return launch_attention<T, 64>(p, stream);
  if (p.head_dim <= 128) return launch_attention<T, 128>(p, stream);
  return launch_attention<T, 256>(p, stream);
}

template <typename T>
cudaError_t load_all() {
  constexpr bool kHalfTypes = sizeof(T) == 2;
  return load_kernels(mra2_pool_kernel<T>, mra2_select_kernel<kHalfTypes>, mra2_logits_kernel, mra2_refine_kernel,
                      mra2_lists_kernel<kHalfTypes>, Kernels<T, 32>::kSelected, Kernels<T, 64>::kSelected,
                      Kernels<T, 128>::kSelected, Kernels<T, 256>::kSelected, Kernels<T, 32>::kDense, Kernels<T, 64>::kDense,
                      Kernels<T, 128>::kDense, Kernels<T, 256>::kDense);
}

}  // namespace
}  // namespace cuda

bool cuda_validate(const Mra2AttentionParams& params, char* message, std::size_t message_size) noexcept {
  if (!validate(params, message, message_size)) return false;
  if (params.seq_len <= kMra2CudaMaxSeqLen) return true;
  return Refusal{message, message_size}(
      "seq_len=%" PRId64 " must be at most %" PRId64
      " on a GPU, where a logit for each pair of blocks is kept. Cut the texts, or run them on the "
      "CPU.",
      params.seq_len, kMra2CudaMaxSeqLen);
}

std::size_t cuda_workspace_size(const Mra2AttentionParams& params) noexcept {
  if (!cuda_validate(params, nullptr, 0)) return 0;
  cuda::Mra2Problem p = cuda::make_problem(params);
  cuda::Arena arena(nullptr);
  cuda::lay_out(p, arena);
  return arena.bytes();
}

cudaError_t mra2_attention_cuda(const Mra2AttentionParams& params, void* workspace, std::size_t workspace_bytes,
                                cudaStream_t stream) noexcept {
  if (!cuda_validate(params, nullptr, 0)) return cudaErrorInvalidValue;
  if (params.batch == 0) return cudaSuccess;
  if (!cuda::usable(params.query) || !cuda::usable(params.key) || !cuda::usable(params.value) || !cuda::usable(params.context) ||
      !cuda::usable(workspace) || params.attention_mask == nullptr)
    return cudaErrorInvalidValue;
  cuda::Mra2Problem p = cuda::make_problem(params);
  cuda::Arena arena(workspace);
  cuda::lay_out(p, arena);
  if (workspace_bytes < arena.bytes()) return cudaErrorInvalidValue;
  if (params.dtype == DType::kFloat16) return cuda::launch_all<__half>(p, stream);
  if (params.dtype == DType::kBFloat16) return cuda::launch_all<__nv_bfloat16>(p, stream);
  return cuda::launch_all<float>(p, stream);
}

cudaError_t cuda_load(const Mra2AttentionParams& params) noexcept {
  if (params.dtype == DType::kFloat16) return cuda::load_all<__half>();
  if (params.dtype == DType::kBFloat16) return cuda::load_all<__nv_bfloat16>();
  return cuda::load_all<float>();
}

}  // namespace mra
