// mra::Mra2Attention on a CUDA device: workspace size and launch. Framework-free: standard library and CUDA runtime only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "mra2_attention/mra2_attention.h"

namespace mra {

// The workspace holds a logit for each pair of blocks: at this length 0.8 GB for an example of 12 heads, and four times that at twice the
// length.
constexpr std::int64_t kMra2CudaMaxSeqLen = 131072;

// As validate(), and for what only the CUDA kernels refuse: longer sequences.
bool cuda_validate(const Mra2AttentionParams& params, char* message, std::size_t message_size) noexcept;

// Bytes of workspace that mra2_attention_cuda() needs for these sizes and attributes; pointers are not looked at. It never shrinks
// when batch, seq_len or num_blocks grow, so the size for a profile's maximum serves the whole profile. 0 if cuda_validate() refuses
// the params.
std::size_t cuda_workspace_size(const Mra2AttentionParams& params) noexcept;

// Enqueues the operator on `stream`: one kernel launch where every block is selected, else three up to 2048 tokens and six beyond; no
// allocation, no synchronisation, capturable in a CUDA graph. The same inputs give the same bits. All pointers are device pointers;
// `workspace` needs no initialisation, and concurrent calls need workspaces of their own. Returns cudaErrorInvalidValue for parameters
// that cuda_validate() refuses, for a workspace that is too small, and for a null or misaligned pointer; otherwise what the launches
// return.
cudaError_t mra2_attention_cuda(const Mra2AttentionParams& params, void* workspace, std::size_t workspace_bytes,
                                cudaStream_t stream) noexcept;

// Loads the kernels that calls with this dtype may need, for the current device; the other fields are not looked at. Each kernel's
// first launch would load it, which a stream that is being captured may not allow.
cudaError_t cuda_load(const Mra2AttentionParams& params) noexcept;

}  // namespace mra
