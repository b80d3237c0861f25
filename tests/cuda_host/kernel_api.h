// The C interface through which the tests call the kernels, on the host or on a device: all pointers are host pointers.
//
// context and workspace lie between guards of kGuard bytes each, which a device implementation carries to the device and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mra2_attention_cuda.h"

constexpr std::size_t kGuard = 256;

struct MraCall {
  const void* query;
  const void* key;
  const void* value;
  const std::int32_t* attention_mask;
  void* context;
  std::int64_t batch, seq_len, hidden_size, dtype, num_heads, num_blocks, approx_mode, first_n, diagonal_n;
  double scale;

  mra::Mra2AttentionParams params() const {
    mra::Mra2AttentionParams p;
    p.query = query;
    p.key = key;
    p.value = value;
    p.attention_mask = attention_mask;
    p.context = context;
    p.batch = batch;
    p.seq_len = seq_len;
    p.hidden_size = hidden_size;
    p.dtype = static_cast<mra::DType>(dtype);
    p.num_heads = num_heads;
    p.num_blocks = num_blocks;
    p.approx_mode = approx_mode;
    p.initial_prior_first_n_blocks = first_n;
    p.initial_prior_diagonal_n_blocks = diagonal_n;
    p.scale = static_cast<float>(scale);
    return p;
  }
  std::size_t tensor_bytes() const {
    return static_cast<std::size_t>(batch * seq_len * hidden_size) * (dtype == 0 ? 4 : 2);
  }
  std::size_t mask_bytes() const { return static_cast<std::size_t>(batch * seq_len) * 4; }
};

#define MRA_TEST_API extern "C" __attribute__((visibility("default")))

MRA_TEST_API std::uint64_t mra_cuda_workspace_size(const MraCall* call);
// A cudaError_t. Null and misaligned pointers go through to the operator.
MRA_TEST_API int mra_cuda_run(const MraCall* call, void* workspace, std::uint64_t workspace_bytes);
// The selection that a run left in its workspace, as bytes [heads, nb, nb]; -1 if a list is not ascending or out of range.
MRA_TEST_API int mra_cuda_selection(const MraCall* call, void* workspace, std::uint8_t* selected);
// Chunks over all heads, and the most chunks of one row.
MRA_TEST_API void mra_cuda_chunks(const MraCall* call, void* workspace, std::int64_t* chunks, std::int64_t* most_parts);
