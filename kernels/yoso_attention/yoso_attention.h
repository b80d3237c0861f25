// The contract of mra::YosoAttention for every backend: one params struct, its validation, and the CPU entry points.
// Framework-free: standard library only. The operator's steps are those of mra_export/operators/yoso_attention/reference.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/call.h"
#include "op_spec.h"

namespace mra {

// One call of the operator. Tensors are dense and row-major; none of them overlaps context.
struct YosoAttentionParams {
  const void* query = nullptr;                   // dtype [batch, seq_len, hidden_size]
  const void* key = nullptr;                     // dtype [batch, seq_len, hidden_size]
  const void* value = nullptr;                   // dtype [batch, seq_len, hidden_size]
  const std::int32_t* attention_mask = nullptr;  // [batch, seq_len]; 0 = padding, anything else = token
  const std::int32_t* hash_constants = nullptr;  // hash_constants_shape(); only in mode lsh
  const void* conv_weight = nullptr;             // dtype [num_heads, conv_window]; only if conv_window > 0
  void* context = nullptr;                       // dtype [batch, seq_len, hidden_size]; every element is written

  std::int64_t batch = 0;
  std::int64_t seq_len = 0;
  std::int64_t hidden_size = 0;  // num_heads * head_dim
  DType dtype = DType::kFloat32;

  // Attributes (op_spec.h). 64-bit, as ONNX has them, so that no value is cut before validate() has seen it.
  std::int64_t num_heads = 0;
  std::int64_t mode = 0;
  std::int64_t hash_code_len = 0;
  std::int64_t num_hash = 0;
  std::int64_t fast_hash = 0;
  std::int64_t conv_window = 0;

  std::int64_t head_dim() const { return num_heads > 0 ? hidden_size / num_heads : 0; }
  bool lsh() const { return mode == static_cast<std::int64_t>(YosoMode::kLsh); }
  std::int64_t transform_dim() const {
    std::int64_t dim = kYosoMinTransformDim;
    while (dim < head_dim()) dim *= 2;
    return dim;
  }
  std::int64_t hash_bits() const { return num_hash * hash_code_len; }  // of one row, all hashes together
  std::int64_t parts() const { return (hash_bits() + transform_dim() - 1) / transform_dim(); }

  // Writes the dimensions of hash_constants and returns how many they are.
  int hash_constants_shape(std::int64_t (&dims)[4]) const {
    dims[0] = num_heads;
    if (fast_hash != 0) {
      dims[1] = parts();
      dims[2] = 3;
      dims[3] = transform_dim();
      return 4;
    }
    dims[1] = hash_bits();
    dims[2] = head_dim();
    return 3;
  }
};

// The only judge of sizes and attributes. True if they are acceptable; otherwise `message` (NUL-terminated, cut at
// `message_size`) says which value is wrong, its limit, and what to do. Pointers are not looked at, nor what constants hold.
bool validate(const YosoAttentionParams& params, char* message, std::size_t message_size) noexcept;

// Bytes of scratch memory that one call of yoso_attention_cpu needs. The params must be valid; pointers are not looked at.
std::size_t cpu_workspace_size(const YosoAttentionParams& params, CpuIsa isa) noexcept;

// Computes the operator on the CPU. The params must be valid and their pointers set. `workspace` points to
// cpu_workspace_size(params, isa) bytes of any alignment and content, used by nobody else meanwhile. Allocates nothing, prints
// nothing and throws nothing. The result is the same, bit for bit, whatever the pool.
void yoso_attention_cpu(const YosoAttentionParams& params, void* workspace, CpuIsa isa, ParallelFor parallel_for) noexcept;

}  // namespace mra
