// The contract of mra::Mra2Attention for every backend: one params struct, its validation, and the CPU entry points.
// Framework-free: standard library only. The operator's steps are those of mra_export/operators/mra2_attention/reference.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/call.h"
#include "op_spec.h"

namespace mra {

// One call of the operator. Tensors are dense and row-major; none of them overlaps context.
struct Mra2AttentionParams {
  const void* query = nullptr;                   // dtype [batch, seq_len, hidden_size]
  const void* key = nullptr;                     // dtype [batch, seq_len, hidden_size]
  const void* value = nullptr;                   // dtype [batch, seq_len, hidden_size]
  const std::int32_t* attention_mask = nullptr;  // [batch, seq_len]; 0 = padding, anything else = token
  void* context = nullptr;                       // dtype [batch, seq_len, hidden_size]; every element is written

  std::int64_t batch = 0;
  std::int64_t seq_len = 0;
  std::int64_t hidden_size = 0;  // num_heads * head_dim
  DType dtype = DType::kFloat32;

  // Attributes (op_spec.h). 64-bit, as ONNX has them, so that no value is cut before validate() has seen it.
  std::int64_t num_heads = 0;
  std::int64_t num_blocks = 0;
  std::int64_t approx_mode = 0;
  std::int64_t initial_prior_first_n_blocks = 0;
  std::int64_t initial_prior_diagonal_n_blocks = 0;
  float scale = 0.0f;

  std::int64_t head_dim() const { return num_heads > 0 ? hidden_size / num_heads : 0; }
  std::int64_t blocks_per_seq() const { return (seq_len + kBlockSize - 1) / kBlockSize; }  // nb
  std::int64_t selected_blocks() const {                                                   // T, per head
    const std::int64_t all = blocks_per_seq() * blocks_per_seq();
    return num_blocks < all ? num_blocks : all;
  }
};

// The only judge of sizes and attributes. True if they are acceptable; otherwise `message` (NUL-terminated, cut at
// `message_size`) says which value is wrong, its limit, and what to do. Pointers are not looked at: a plugin validates
// before it has any.
bool validate(const Mra2AttentionParams& params, char* message, std::size_t message_size) noexcept;

// Bytes of scratch memory that one call of mra2_attention_cpu needs. The params must be valid; pointers are not looked at.
std::size_t cpu_workspace_size(const Mra2AttentionParams& params, CpuIsa isa) noexcept;

// Computes the operator on the CPU. The params must be valid and their pointers set. `workspace` points to
// cpu_workspace_size(params, isa) bytes of any alignment and content, used by nobody else meanwhile. Allocates nothing, prints
// nothing and throws nothing.
void mra2_attention_cpu(const Mra2AttentionParams& params, void* workspace, CpuIsa isa, ParallelFor parallel_for) noexcept;

}  // namespace mra
