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

// Instruction sets that the CPU operators are compiled for, worst first. The last one rounds what the attention multiplies to
// bfloat16: it is for callers that ask for it.
enum class CpuIsa : std::int32_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// Chooses the instruction set: the one called `name` ("portable", "avx2", "avx512", "avx512_bf16"), or the best for float32 that
// this machine has where `name` is null or empty. False, with a message as validate() writes it, for another name or one that this
// machine lacks.
bool choose_cpu_isa(const char* name, CpuIsa* isa, char* message, std::size_t message_size) noexcept;

// The instruction set for a caller for whom bfloat16 is good enough: kAvx512Bf16 in the place of kAvx512 where this machine has
// it; `isa` itself otherwise.
CpuIsa reduced_cpu_isa(CpuIsa isa) noexcept;

// Device and workspace pointers must have this alignment, as every allocator of every framework gives it.
constexpr std::size_t kCudaAlignment = 16;

}  // namespace mra
