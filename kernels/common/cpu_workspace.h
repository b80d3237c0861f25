// Hands out the workspace of a CPU operator.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mra {

inline std::int64_t round_up(std::int64_t value, std::int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// From a null workspace it counts the bytes, with those that aligning another one may take.
class CpuArena {
 public:
  explicit CpuArena(void* workspace) : base_(static_cast<char*>(workspace)) {
    const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(workspace));
    if (workspace != nullptr) base_ += round_up(address, kAlignment) - address;
  }
  template <typename T>
  void take(T*& pointer, std::int64_t count) {
    pointer = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ = round_up(used_ + count * static_cast<std::int64_t>(sizeof(T)), kAlignment);
  }
  std::size_t bytes() const { return static_cast<std::size_t>(used_ + kAlignment); }

 private:
  static constexpr std::int64_t kAlignment = 64;
  char* base_;
  std::int64_t used_ = 0;
};

}  // namespace mra
