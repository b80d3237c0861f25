// Validation of the sizes and attributes of mra::YosoAttention, shared by every backend.
#include "yoso_attention/yoso_attention.h"

#include <cinttypes>

namespace mra {

bool validate(const YosoAttentionParams& p, char* message, std::size_t message_size) noexcept {
  const Refusal fail{message, message_size};
  if (!validate_sizes(p.batch, p.seq_len, p.hidden_size, p.dtype, p.num_heads, fail)) return false;
  if (p.mode != static_cast<std::int64_t>(YosoMode::kExpectation) && p.mode != static_cast<std::int64_t>(YosoMode::kLsh))
    return fail("mode=%" PRId64 " must be 0 (expectation) or 1 (lsh). Check use_expectation in config.json.", p.mode);
  if (p.hash_code_len < 1 || p.hash_code_len > kYosoMaxHashCodeLen)
    return fail("hash_code_len=%" PRId64 " must be between 1 and %d. Check config.json.", p.hash_code_len, kYosoMaxHashCodeLen);
  if (p.conv_window != 0 && (p.conv_window < 1 || p.conv_window % 2 == 0 || p.conv_window > kYosoMaxConvWindow))
    return fail("conv_window=%" PRId64 " must be odd and between 1 and %d, or 0 for no convolution. Check config.json.",
                p.conv_window, kYosoMaxConvWindow);
  if (p.lsh()) {
    if (p.num_hash < 1 || p.num_hash > kYosoMaxNumHash)
      return fail("num_hash=%" PRId64 " must be between 1 and %d. Check config.json.", p.num_hash, kYosoMaxNumHash);
    if (p.fast_hash != 0 && p.fast_hash != 1) return fail("fast_hash=%" PRId64 " must be 0 or 1.", p.fast_hash);
  }
  return true;
}

}  // namespace mra
