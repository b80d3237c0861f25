// The C interface through which the tests call the kernels, on the host or on a device: all pointers are host pointers.
//
// context and workspace lie between guards of kGuard bytes each, which a device implementation carries to the device and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mra2_attention/cuda/mra2_attention_cuda.h"
#include "yoso_attention/cuda/yoso_attention_cuda.h"

constexpr std::size_t kGuard = 256;

struct MraCall {
  static constexpr int kInputs = 4;
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
  std::size_t tensor_bytes() const { return static_cast<std::size_t>(batch * seq_len * hidden_size) * (dtype == 0 ? 4 : 2); }
  std::size_t input_bytes(int i) const { return i == 3 ? static_cast<std::size_t>(batch * seq_len) * 4 : tensor_bytes(); }
  const void* input(int i) const {
    const void* const all[kInputs] = {query, key, value, attention_mask};
    return all[i];
  }
  void set_inputs(void* const (&all)[kInputs]) {
    query = all[0];
    key = all[1];
    value = all[2];
    attention_mask = static_cast<const std::int32_t*>(all[3]);
  }
};

// A call of mra::YosoAttention. An input that its attributes do not ask for has no bytes.
struct YosoCall {
  static constexpr int kInputs = 6;
  const void* inputs[kInputs];  // query, key, value, attention_mask, hash_constants, conv_weight
  void* context;
  std::int64_t batch, seq_len, hidden_size, dtype, num_heads, mode, hash_code_len, num_hash, fast_hash, conv_window;

  mra::YosoAttentionParams params() const {
    mra::YosoAttentionParams p;
    p.query = inputs[0];
    p.key = inputs[1];
    p.value = inputs[2];
    p.attention_mask = static_cast<const std::int32_t*>(inputs[3]);
    p.hash_constants = static_cast<const std::int32_t*>(inputs[4]);
    p.conv_weight = inputs[5];
    p.context = context;
    p.batch = batch;
    p.seq_len = seq_len;
    p.hidden_size = hidden_size;
    p.dtype = static_cast<mra::DType>(dtype);
    p.num_heads = num_heads;
    p.mode = mode;
    p.hash_code_len = hash_code_len;
    p.num_hash = num_hash;
    p.fast_hash = fast_hash;
    p.conv_window = conv_window;
    return p;
  }
  std::size_t element_bytes() const { return dtype == 0 ? 4 : 2; }
  std::size_t tensor_bytes() const { return static_cast<std::size_t>(batch * seq_len * hidden_size) * element_bytes(); }
  std::size_t input_bytes(int i) const {
    if (i < 3) return tensor_bytes();
    if (i == 3) return static_cast<std::size_t>(batch * seq_len) * 4;
    if (i == 5) return static_cast<std::size_t>(num_heads * conv_window) * element_bytes();
    const mra::YosoAttentionParams p = params();
    if (!p.lsh()) return 0;
    std::int64_t dims[4];
    std::size_t bytes = 4;
    for (int n = p.hash_constants_shape(dims) - 1; n >= 0; --n) bytes *= static_cast<std::size_t>(dims[n]);
    return bytes;
  }
  const void* input(int i) const { return inputs[i]; }
  void set_inputs(void* const (&all)[kInputs]) {
    for (int i = 0; i < kInputs; ++i) inputs[i] = all[i];
  }
};

#define MRA_TEST_API extern "C" __attribute__((visibility("default")))

MRA_TEST_API std::uint64_t mra_cuda_workspace_size(const MraCall* call);
// A cudaError_t. Null and misaligned pointers go through to the operator.
MRA_TEST_API int mra_cuda_run(const MraCall* call, void* workspace, std::uint64_t workspace_bytes);
// The selection that a run left in its workspace, or all blocks if it left none, as bytes [heads, nb, nb]; -1 if a list is not ascending or out of range.
MRA_TEST_API int mra_cuda_selection(const MraCall* call, void* workspace, std::uint8_t* selected);
// mra::YosoAttention, likewise.
MRA_TEST_API std::uint64_t mra_yoso_workspace_size(const YosoCall* call);
MRA_TEST_API int mra_yoso_run(const YosoCall* call, void* workspace, std::uint64_t workspace_bytes);
// The hash codes that a run left in its workspace, [2 (queries, keys), heads, num_hash, seq_len]; -1 if it did not compute all heads at once.
MRA_TEST_API int mra_yoso_codes(const YosoCall* call, void* workspace, std::uint16_t* codes);
// Chunks over all heads, none where every block is selected, and the most chunks of one row.
MRA_TEST_API void mra_cuda_chunks(const MraCall* call, void* workspace, std::int64_t* chunks, std::int64_t* most_parts);
