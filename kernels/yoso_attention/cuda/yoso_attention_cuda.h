// mra::YosoAttention on a CUDA device: workspace size and launch. Framework-free: standard library and CUDA runtime only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "yoso_attention/yoso_attention.h"

namespace mra {

// As validate(): the CUDA kernels have no limits of their own.
inline bool cuda_validate(const YosoAttentionParams& params, char* message, std::size_t message_size) noexcept {
  return validate(params, message, message_size);
}

// Bytes of workspace that yoso_attention_cuda() needs for these sizes and attributes; pointers are not looked at. It never shrinks
// when batch or seq_len grow, so the size for a profile's maximum serves the whole profile. 0 if params are invalid.
std::size_t cuda_workspace_size(const YosoAttentionParams& params) noexcept;

// Enqueues the operator on `stream`: two kernel launches in mode expectation, and in mode lsh four for every group of heads whose tables
// fit the workspace together (problem.cuh); no allocation, no synchronisation, capturable in a CUDA graph. The same inputs give
// the same bits. All pointers are device pointers, aligned to kCudaAlignment (call.h); `workspace` needs no
// initialisation, and concurrent calls need workspaces of their own. Returns cudaErrorInvalidValue for parameters that validate()
// refuses, for a workspace that is too small, and for a null or misaligned pointer; otherwise what the launches return.
cudaError_t yoso_attention_cuda(const YosoAttentionParams& params, void* workspace, std::size_t workspace_bytes,
                                cudaStream_t stream) noexcept;

// Loads the kernels that calls with this dtype and mode may need, for the current device; the other fields are not looked at. Each kernel's
// first launch would load it, which a stream that is being captured may not allow.
cudaError_t cuda_load(const YosoAttentionParams& params) noexcept;

}  // namespace mra
