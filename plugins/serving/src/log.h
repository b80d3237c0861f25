// What the library says while it works, for the function that the program gave for it.
#pragma once

#include <string>

#include "mra/serving.h"

namespace mra::serving::detail {

bool is_logged() noexcept;
void log(LogLevel level, const std::string& message) noexcept;

}  // namespace mra::serving::detail
