// The program's function for messages, of which there is one in a process, as ONNX Runtime has one environment.
#include "log.h"

#include <memory>
#include <mutex>
#include <utility>

#include "failure.h"
#include "json.h"

namespace mra::serving {
namespace {

std::mutex& mutex() {
  static std::mutex one;
  return one;
}

std::shared_ptr<const LogFunction>& function() {
  static std::shared_ptr<const LogFunction> one;
  return one;
}

std::shared_ptr<const LogFunction> current() {
  const std::lock_guard<std::mutex> lock(mutex());
  return function();
}

}  // namespace

Status set_log(LogFunction log) noexcept {
  return guarded([&] {
    auto next = log != nullptr ? std::make_shared<const LogFunction>(std::move(log)) : nullptr;
    const std::lock_guard<std::mutex> lock(mutex());
    function().swap(next);
  });
}

namespace detail {

bool is_logged() noexcept {
  const std::lock_guard<std::mutex> lock(mutex());
  return function() != nullptr;
}

void log(LogLevel level, const std::string& message) noexcept {
  try {
    if (const std::shared_ptr<const LogFunction> told = current()) (*told)(level, printable(message));
  } catch (...) {  // a message that cannot be had, or a function that throws, is nobody's error
  }
}

}  // namespace detail
}  // namespace mra::serving
