// Validation of the sizes and attributes of mra::YosoAttention, shared by every backend.
#include "yoso_attention.h"

#include <cinttypes>
#include <cstdio>

namespace mra {

bool validate(const YosoAttentionParams& p, char* message, std::size_t message_size) noexcept {
  const auto fail = [&](const char* format, auto... values) {
    if (message != nullptr && message_size > 0) std::snprintf(message, message_size, format, values...);
    return false;
  };
  // What both operators ask for.
  Mra2AttentionParams sizes;
  sizes.batch = p.batch;
  sizes.seq_len = p.seq_len;
  sizes.hidden_size = p.hidden_size;
  sizes.dtype = p.dtype;
  sizes.num_heads = p.num_heads;
  sizes.num_blocks = 1;
  if (!validate(sizes, message, message_size)) return false;
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
