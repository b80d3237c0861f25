// Validation of the sizes that every operator has, and the choice of the instruction set.
#include "common/call.h"

#include <cinttypes>
#include <cstring>

namespace mra {
namespace {

#if defined(__x86_64__) && defined(MRA_CPU_X86)
bool machine_has(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512Fp16:
#if defined(MRA_CPU_FP16)
      return machine_has(CpuIsa::kAvx512) && __builtin_cpu_supports("avx512fp16");
#else
      return false;
#endif
    case CpuIsa::kAvx512Bf16:
      return machine_has(CpuIsa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case CpuIsa::kAvx512:
      return machine_has(CpuIsa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case CpuIsa::kAvx2:  // every processor with AVX2 has F16C
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case CpuIsa::kPortable:
      return true;
  }
  return false;
}
#else
bool machine_has(CpuIsa isa) { return isa == CpuIsa::kPortable; }
#endif

// Whether an instruction set may be chosen where the caller names none.
bool is_choice(CpuIsa isa, Accuracy accuracy) {
  if (isa != CpuIsa::kAvx512Bf16 && isa != CpuIsa::kAvx512Fp16) return true;
#if defined(__x86_64__) && defined(MRA_CPU_X86)
  // Intel's cores take VDPBF16PS every other cycle, and two multiply-adds in float32 each: half as fast. AMD's take as many.
  if (isa == CpuIsa::kAvx512Bf16 && !__builtin_cpu_is("amd")) return false;
#endif
  return accuracy == Accuracy::kBf16;
}

}  // namespace

bool validate_sizes(std::int64_t batch, std::int64_t seq_len, std::int64_t hidden_size, DType dtype, std::int64_t num_heads,
                    const Refusal& fail) noexcept {
  if (dtype != DType::kFloat32 && dtype != DType::kFloat16 && dtype != DType::kBFloat16)
    return fail("dtype=%d must be 0 (float), 1 (float16) or 2 (bfloat16).", static_cast<int>(dtype));
  if (num_heads < 1) return fail("num_heads=%" PRId64 " must be at least 1. Check num_attention_heads in config.json.", num_heads);
  if (hidden_size < 1 || hidden_size % num_heads != 0)
    return fail("hidden_size=%" PRId64 " must be a positive multiple of num_heads=%" PRId64
                ". Check the last dimension of query, key and value.",
                hidden_size, num_heads);
  const std::int64_t head_dim = hidden_size / num_heads;
  if (head_dim % kHeadDimMultiple != 0 || head_dim > kMaxHeadDim)
    return fail("head_dim=%" PRId64 " (hidden_size=%" PRId64 " / num_heads=%" PRId64
                ") must be a multiple of %d and at most %d. Choose another hidden_size or num_attention_heads.",
                head_dim, hidden_size, num_heads, kHeadDimMultiple, kMaxHeadDim);
  if (batch < 0) return fail("batch=%" PRId64 " must not be negative.", batch);
  if (seq_len < 1 || seq_len > kMaxSeqLen)
    return fail("seq_len=%" PRId64 " must be between 1 and %" PRId64 ". Check the second dimension of query.", seq_len, kMaxSeqLen);
  return true;
}

bool parse_accuracy(const char* where, const char* name, Accuracy* accuracy, char* message, std::size_t message_size) noexcept {
  if (std::strcmp(name, "fp32") != 0 && std::strcmp(name, "bf16") != 0)
    return Refusal{message, message_size}("%s=%s must be fp32 or bf16. Leave it out for fp32.", where, name);
  *accuracy = name[0] == 'b' ? Accuracy::kBf16 : Accuracy::kFp32;
  return true;
}

bool choose_cpu_isa(const char* name, Accuracy accuracy, CpuIsa* isa, char* message, std::size_t message_size) noexcept {
  constexpr struct {
    const char* name;
    CpuIsa isa;
  } kKnown[] = {{"avx512_bf16", CpuIsa::kAvx512Bf16},
                {"avx512_fp16", CpuIsa::kAvx512Fp16},
                {"avx512", CpuIsa::kAvx512},
                {"avx2", CpuIsa::kAvx2},
                {"portable", CpuIsa::kPortable}};
  const bool best = name == nullptr || name[0] == '\0';
  for (const auto& known : kKnown) {
    if (best ? !is_choice(known.isa, accuracy) : std::strcmp(name, known.name) != 0) continue;
    if (machine_has(known.isa)) {
      *isa = known.isa;
      return true;
    }
    if (best) continue;
    std::snprintf(message, message_size, "MRA_CPU_ISA=%s is not supported by this machine or build. Unset MRA_CPU_ISA.", name);
    return false;
  }
  std::snprintf(message, message_size,
                "MRA_CPU_ISA=%s must be avx512_bf16, avx512_fp16, avx512, avx2 or portable, or unset for the best one.", name);
  return false;
}

}  // namespace mra
