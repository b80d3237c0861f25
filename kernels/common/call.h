// What a call of any operator has, whatever the backend: its element type and sizes, their validation, and how the CPU runs it.
// Framework-free: standard library only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "op_spec.h"

namespace mra {

enum class DType : std::int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// What is wrong, to the caller's buffer (NUL-terminated, cut at `size`; null for none); false, for validate() to return.
struct Refusal {
  char* message;
  std::size_t size;

  template <typename... Values>
  bool operator()(const char* format, Values... values) const {
    if (message != nullptr && size > 0) std::snprintf(message, size, format, values...);
    return false;
  }
};

// Judges the sizes that every operator has, for its validate().
bool validate_sizes(std::int64_t batch, std::int64_t seq_len, std::int64_t hidden_size, DType dtype, std::int64_t num_heads,
                    const Refusal& fail) noexcept;

// How a CPU operator gets its parallelism: `run` calls task(argument, i) once for every 0 <= i < count, in any order, on any
// threads of its pool, and returns when all are done. A null `run` means this thread alone. The result is the same, bit
// for bit, whatever the pool.
struct ParallelFor {
  void (*run)(void* pool, void (*task)(void* argument, std::size_t i), void* argument, std::size_t count) = nullptr;
  void* pool = nullptr;
};

// Instruction sets that the CPU operators are compiled for, worst first. The last two round what the attention multiplies, to
// bfloat16 or float16: they are for callers that ask for it.
enum class CpuIsa : std::int32_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAvx512Fp16 = 4 };

// How exactly a caller wants the CPU operators to compute. kBf16: what they multiply may be rounded to bfloat16, or to what is
// more exact, where that is faster; what they select stays float32's.
enum class Accuracy : std::int32_t { kFp32 = 0, kBf16 = 1 };

// The level called `name`: "fp32" or "bf16". False, with a message as validate() writes it that begins with `where`, for another.
bool parse_accuracy(const char* where, const char* name, Accuracy* accuracy, char* message, std::size_t message_size) noexcept;

// Chooses the instruction set: the one called `name` ("portable", "avx2", "avx512", "avx512_fp16", "avx512_bf16"), whatever the
// accuracy; or, where `name` is null or empty, the fastest that this machine has for that accuracy. False, with a message as
// validate() writes it, for another name or one that this machine lacks.
bool choose_cpu_isa(const char* name, Accuracy accuracy, CpuIsa* isa, char* message, std::size_t message_size) noexcept;

// Device and workspace pointers must have this alignment, as every allocator of every framework gives it.
constexpr std::size_t kCudaAlignment = 16;

}  // namespace mra
