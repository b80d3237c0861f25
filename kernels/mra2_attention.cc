// Validation of the operator's sizes and attributes, shared by every backend.
#include "mra2_attention.h"

#include <cinttypes>
#include <cmath>
#include <cstdio>

namespace mra {

bool validate(const Mra2AttentionParams& p, char* message, std::size_t message_size) noexcept {
  const auto fail = [&](const char* format, auto... values) {
    if (message != nullptr && message_size > 0) std::snprintf(message, message_size, format, values...);
    return false;
  };
  if (p.dtype != DType::kFloat32 && p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16)
    return fail("dtype=%d must be 0 (float), 1 (float16) or 2 (bfloat16).", static_cast<int>(p.dtype));
  if (p.num_heads < 1)
    return fail("num_heads=%" PRId64 " must be at least 1. Check num_attention_heads in config.json.", p.num_heads);
  if (p.hidden_size < 1 || p.hidden_size % p.num_heads != 0)
    return fail("hidden_size=%" PRId64 " must be a positive multiple of num_heads=%" PRId64
                ". Check the last dimension of query, key and value.",
                p.hidden_size, p.num_heads);
  if (p.head_dim() % kHeadDimMultiple != 0 || p.head_dim() > kMaxHeadDim)
    return fail("head_dim=%" PRId64 " (hidden_size=%" PRId64 " / num_heads=%" PRId64
                ") must be a multiple of %d and at most %d. Choose another hidden_size or num_attention_heads.",
                p.head_dim(), p.hidden_size, p.num_heads, kHeadDimMultiple, kMaxHeadDim);
  if (p.batch < 0) return fail("batch=%" PRId64 " must not be negative.", p.batch);
  if (p.seq_len < 1 || p.seq_len > kMaxSeqLen)
    return fail("seq_len=%" PRId64 " must be between 1 and %" PRId64 ". Check the second dimension of query.", p.seq_len,
                kMaxSeqLen);
  if (p.num_blocks < 1)
    return fail("num_blocks=%" PRId64 " must be at least 1. Check block_per_row in config.json.", p.num_blocks);
  if (p.approx_mode != static_cast<std::int64_t>(ApproxMode::kFull) &&
      p.approx_mode != static_cast<std::int64_t>(ApproxMode::kSparse))
    return fail("approx_mode=%" PRId64 " must be 0 (full) or 1 (sparse). Check approx_mode in config.json.", p.approx_mode);
  if (p.initial_prior_first_n_blocks < 0)
    return fail("initial_prior_first_n_blocks=%" PRId64 " must not be negative. Check config.json.",
                p.initial_prior_first_n_blocks);
  if (p.initial_prior_diagonal_n_blocks < 0)
    return fail("initial_prior_diagonal_n_blocks=%" PRId64 " must not be negative. Check config.json.",
                p.initial_prior_diagonal_n_blocks);
  if (!std::isfinite(p.scale)) return fail("scale=%g must be finite.", static_cast<double>(p.scale));
  return true;
}

}  // namespace mra
