// Hands out an operator's workspace on a device.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mra::cuda {

// From a null base it counts the bytes.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <typename T>
  void take(T*& pointer, std::int64_t count) {
    constexpr std::size_t kLine = 128;
    if (base_ != nullptr) pointer = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  std::size_t bytes_ = 0;
};

}  // namespace mra::cuda
