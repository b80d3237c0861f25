// Refuses texts that a model cannot run, and says which.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "failure.h"

namespace mra::serving::detail {

// Throws Failure unless `ids` [size] are one text of a model.
inline void check_ids(std::size_t row, const std::int64_t* ids, std::size_t size, std::int64_t max_seq_len,
                      std::int64_t vocab_size) {
  const auto refuse = [&](const std::string& what) { fail(Code::kInput, "Text " + std::to_string(row) + " " + what); };
  if (size == 0) refuse("has no tokens. Even an empty text has the model's special tokens.");
  if (size > static_cast<std::size_t>(max_seq_len))
    refuse("has " + std::to_string(size) + " tokens, more than the " + std::to_string(max_seq_len) +
           " of this model. Truncate it when you tokenize.");
  for (std::size_t i = 0; i < size; ++i)
    if (ids[i] < 0 || ids[i] >= vocab_size)
      refuse("has the token id " + std::to_string(ids[i]) + " at place " + std::to_string(i) + "; ids are 0 to " +
             std::to_string(vocab_size - 1) + ".");
}

}  // namespace mra::serving::detail
