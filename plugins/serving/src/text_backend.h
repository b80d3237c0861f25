// What the library needs of an encoder that lives in a library of its own.
#pragma once

#include <memory>

#include "mra/serving.h"
#include "text_tables.h"

namespace mra::serving {

// What libmra_serving_python.so hands out.
struct TextLibrary {
  const char* build;  // must be kTextBuild of the library that loads it
  const char* name;   // "python"
  Status (*open)(const TextRequest& request, std::shared_ptr<const TextEncoder>* encoder) noexcept;
};

#define MRA_SERVING_TEXT_ENTRY "mra_serving_text"
inline constexpr const char* kTextBuild = "mra_serving 0.1.0 text 1";

}  // namespace mra::serving
