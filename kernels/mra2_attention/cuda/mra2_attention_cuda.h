// mra::Mra2Attention on a CUDA device: workspace size and launch. Framework-free: standard library and CUDA runtime only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "mra2_attention/mra2_attention.h"

namespace mra {

// Bytes of workspace that mra2_attention_cuda() needs for these sizes and attributes; pointers are not looked at. It never shrinks
// when batch, seq_len or num_blocks grow, so the size for a profile's maximum serves the whole profile. 0 if params are invalid.
std::size_t cuda_workspace_size(const Mra2AttentionParams& params) noexcept;

// Enqueues the operator on `stream`: at most 3 kernel launches; no allocation, no synchronisation, capturable in a CUDA graph.
// The same inputs give the same bits. All pointers are device pointers; `workspace` needs no initialisation, and concurrent calls
// need workspaces of their own. Returns cudaErrorInvalidValue for parameters that validate() refuses, for a workspace that is too
// small, and for a null or misaligned pointer; otherwise what the launches return.
cudaError_t mra2_attention_cuda(const Mra2AttentionParams& params, void* workspace, std::size_t workspace_bytes,
                                cudaStream_t stream) noexcept;

}  // namespace mra
