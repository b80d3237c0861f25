// mra::YosoAttention on a CUDA device: lays out the workspace and launches the kernels.
#include "yoso_attention/cuda/yoso_attention_cuda.h"

#include <algorithm>
#include <cstdint>

#include "common/cuda/launch.cuh"
#include "yoso_attention/cuda/ffma.cuh"
#include "yoso_attention/cuda/hash.cuh"
#include "yoso_attention/cuda/mma.cuh"
#include "yoso_attention/cuda/problem.cuh"
#include "yoso_attention/cuda/tables.cuh"

namespace mra {
namespace cuda {
namespace {

template <typename T, int kDim>
constexpr auto dense_kernel() {
  if constexpr (sizeof(T) == 4)
    return yoso_ffma_kernel<kDim>;
  else
    return yoso_mma_kernel<T, kDim>;
}

template <typename T, int kDim>
cudaError_t launch_dense(const YosoProblem& p, cudaStream_t stream) {
  if constexpr (sizeof(T) == 4) {
    return launch_in_shared(dense_kernel<T, kDim>(), p.heads * p.tiles, kFfmaThreads, YosoFfmaShape<kDim>::kSharedBytes, stream, p);
  } else {
    using Shape = YosoMmaShape<kDim>;
    return launch_in_shared(dense_kernel<T, kDim>(), p.heads * blocks_for(p.seq_len, Shape::kRows), Shape::kThreads,
                            Shape::kSharedBytes, stream, p);
  }
}

template <typename T>
cudaError_t launch_expectation(const YosoProblem& p, cudaStream_t stream) {
  const std::int64_t blocks = p.heads / p.num_heads * p.tiles;
  const cudaError_t error = launch_checked(yoso_prepare_kernel<T>, blocks, kYosoPrepareThreads, 0, stream, p);
  if (error != cudaSuccess) return error;
  // Smaller heads are filled up with zeros: a kernel of their own is not worth the time to compile it.
  if (p.head_dim <= 64) return launch_dense<T, 64>(p, stream);
  if (p.head_dim <= 128) return launch_dense<T, 128>(p, stream);
  return launch_dense<T, 256>(p, stream);
}

template <typename T>
cudaError_t launch_lsh(YosoProblem p, cudaStream_t stream) {
  const HashShape shape(p);
  for (const std::int64_t heads = p.heads, most = p.group; p.first_head < heads; p.first_head += most) {
    p.group = std::min(most, heads - p.first_head);
    const std::int64_t tables = p.group * p.num_hash;
    cudaError_t error = launch_checked(yoso_hash_kernel<T>, 2 * p.group * blocks_for(p.seq_len, shape.rows), kHashThreads,
                                       shape.bytes(), stream, p);
    if (error != cudaSuccess) return error;
    error = launch_checked(yoso_sort_kernel, tables, sort_warps(p) * kWarp, sort_shared_bytes(p), stream, p);
    if (error != cudaSuccess) return error;
    error = launch_checked(yoso_sum_kernel<T>, blocks_for(tables * p.table_rows, kSumThreads / kWarp), kSumThreads, 0, stream, p);
    if (error != cudaSuccess) return error;
    error = launch_checked(yoso_gather_kernel<T>, p.group * p.tiles, kGatherThreads, gather_shared_bytes(p), stream, p);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t launch_all(const YosoProblem& p, cudaStream_t stream) {
  return p.num_hash > 0 ? launch_lsh<T>(p, stream) : launch_expectation<T>(p, stream);
}

template <typename T>
cudaError_t load_all(bool lsh) {
  if (lsh) return load_kernels(yoso_hash_kernel<T>, yoso_sort_kernel, yoso_sum_kernel<T>, yoso_gather_kernel<T>);
  return load_kernels(yoso_prepare_kernel<T>, dense_kernel<T, 64>(), dense_kernel<T, 128>(), dense_kernel<T, 256>());
}

}  // namespace
}  // namespace cuda

std::size_t cuda_workspace_size(const YosoAttentionParams& params) noexcept {
  if (!validate(params, nullptr, 0)) return 0;
  cuda::YosoProblem p = cuda::make_problem(params);
  cuda::Arena arena(nullptr);
  if (params.batch > 0) cuda::lay_out(p, arena);
  return arena.bytes();
}

cudaError_t yoso_attention_cuda(const YosoAttentionParams& params, void* workspace, std::size_t workspace_bytes,
                                cudaStream_t stream) noexcept {
  if (!validate(params, nullptr, 0)) return cudaErrorInvalidValue;
  if (params.batch == 0) return cudaSuccess;
  for (const void* pointer :
       {params.query, params.key, params.value, static_cast<const void*>(params.context), static_cast<const void*>(workspace)})
    if (!cuda::usable(pointer)) return cudaErrorInvalidValue;
  if (params.attention_mask == nullptr || (params.lsh() && params.hash_constants == nullptr) ||
      (params.conv_window > 0 && params.conv_weight == nullptr))
    return cudaErrorInvalidValue;
  cuda::YosoProblem p = cuda::make_problem(params);
  cuda::Arena arena(workspace);
  cuda::lay_out(p, arena);
  if (workspace_bytes < arena.bytes()) return cudaErrorInvalidValue;
  if (params.dtype == DType::kFloat16) return cuda::launch_all<__half>(p, stream);
  if (params.dtype == DType::kBFloat16) return cuda::launch_all<__nv_bfloat16>(p, stream);
  return cuda::launch_all<float>(p, stream);
}

cudaError_t cuda_load(const YosoAttentionParams& params) noexcept {
  if (params.dtype == DType::kFloat16) return cuda::load_all<__half>(params.lsh());
  if (params.dtype == DType::kBFloat16) return cuda::load_all<__nv_bfloat16>(params.lsh());
  return cuda::load_all<float>(params.lsh());
}

}  // namespace mra
