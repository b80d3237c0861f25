// Validation of the sizes and attributes of mra::Mra2Attention, shared by every backend.
#include "mra2_attention/mra2_attention.h"

#include <cinttypes>
#include <cmath>

namespace mra {

bool validate(const Mra2AttentionParams& p, char* message, std::size_t message_size) noexcept {
  const Refusal fail{message, message_size};
  if (!validate_sizes(p.batch, p.seq_len, p.hidden_size, p.dtype, p.num_heads, fail)) return false;
  if (p.num_blocks < 1) return fail("num_blocks=%" PRId64 " must be at least 1. Check block_per_row in config.json.", p.num_blocks);
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
