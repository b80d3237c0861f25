// The CPU operator's entry points: the workspace, and the choice of the instruction set.
#include "mra2_attention_cpu.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <type_traits>

namespace mra {
namespace {

#if defined(__x86_64__) && defined(MRA_CPU_X86)
bool machine_has(CpuIsa isa) {
  switch (isa) {
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

constexpr std::int64_t kAlignment = 64;
// Heads are computed in groups: as many at a time as keep their scores, and their packed keys and values, below these sizes,
// one at least.
constexpr std::int64_t kScoreBytes = std::int64_t{64} << 20;
constexpr std::int64_t kPackedBytes = std::int64_t{32} << 20;
// From this many blocks on, keys and values are copied head by head while they are pooled. A head's rows then lie together, not
// one to a page: reading them again and again costs more than the copy as soon as a head is larger than a core's cache.
constexpr std::int64_t kPackedBlocks = 96;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Lays the plan out from `base` on, and returns the bytes it takes. `base` may be null to learn them.
std::size_t lay_out(const Mra2AttentionParams& params, char* base, CpuPlan* plan) {
  plan->params = params;
  plan->head_dim = params.head_dim();
  plan->padded_dim = round_up(plan->head_dim, 16);
  plan->nb = params.blocks_per_seq();
  plan->padded_nb = round_up(plan->nb, 16);
  plan->heads = params.batch * params.num_heads;
  plan->selected = params.selected_blocks();
  const std::int64_t score_size = plan->nb * plan->padded_nb;
  const std::int64_t packed_rows = plan->nb < kPackedBlocks ? 0 : plan->nb * kBlockSize;  // of one head
  const std::int64_t packed_size = packed_rows * (plan->head_dim + plan->padded_dim);
  constexpr std::int64_t kFloat = sizeof(float);
  std::int64_t fitting = std::min(kScoreBytes / (kFloat * score_size), plan->heads);
  if (packed_size > 0) fitting = std::min(fitting, kPackedBytes / (kFloat * packed_size));
  fitting = std::max<std::int64_t>(1, fitting);
  const std::int64_t groups = std::max<std::int64_t>(1, (plan->heads + fitting - 1) / fitting);  // 0 heads: an empty batch
  plan->group_heads = std::max<std::int64_t>(1, (plan->heads + groups - 1) / groups);            // even groups

  std::int64_t used = 0;
  const auto take = [&](auto*& pointer, std::int64_t count) {
    using T = std::remove_reference_t<decltype(*pointer)>;
    pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used = round_up(used + count * static_cast<std::int64_t>(sizeof(T)), kAlignment);
  };
  take(plan->token_bits, params.batch * plan->nb);
  take(plan->token_counts, params.batch * plan->padded_nb);
  take(plan->packed_key, plan->group_heads * packed_rows * plan->head_dim);
  take(plan->packed_value, plan->group_heads * packed_rows * plan->padded_dim);
  if (packed_rows == 0) plan->packed_key = plan->packed_value = nullptr;
  take(plan->pooled_query, plan->heads * plan->nb * plan->padded_dim);
  take(plan->pooled_key, plan->heads * plan->head_dim * plan->padded_nb);
  take(plan->pooled_value, plan->heads * plan->nb * plan->padded_dim);
  take(plan->row_max, plan->heads * plan->nb);
  take(plan->low_weight, plan->heads * plan->nb);
  take(plan->row_flags, plan->heads * plan->nb);
  take(plan->row_starts, plan->heads * (plan->nb + 1));
  take(plan->columns, plan->heads * plan->selected);
  take(plan->scores, plan->group_heads * score_size);
  return static_cast<std::size_t>(used);
}

}  // namespace

bool choose_cpu_isa(const char* name, CpuIsa* isa, char* message, std::size_t message_size) noexcept {
  constexpr struct {
    const char* name;
    CpuIsa isa;
  } kKnown[] = {{"avx512", CpuIsa::kAvx512}, {"avx2", CpuIsa::kAvx2}, {"portable", CpuIsa::kPortable}};
  const bool best = name == nullptr || name[0] == '\0';
  for (const auto& known : kKnown) {
    if (!best && std::strcmp(name, known.name) != 0) continue;
    if (machine_has(known.isa)) {
      *isa = known.isa;
      return true;
    }
    if (best) continue;
    std::snprintf(message, message_size, "MRA_CPU_ISA=%s is not supported by this machine or build. Unset MRA_CPU_ISA.", name);
    return false;
  }
  std::snprintf(message, message_size, "MRA_CPU_ISA=%s must be avx512, avx2 or portable, or unset for the best one.", name);
  return false;
}

std::size_t cpu_workspace_size(const Mra2AttentionParams& params) noexcept {
  CpuPlan plan;
  return lay_out(params, nullptr, &plan) + kAlignment;
}

void mra2_attention_cpu(const Mra2AttentionParams& params, void* workspace, CpuIsa isa, ParallelFor parallel_for) noexcept {
  if (params.batch == 0) return;
  CpuPlan plan;
  const auto address = reinterpret_cast<std::uintptr_t>(workspace);
  char* base = static_cast<char*>(workspace) + (round_up(static_cast<std::int64_t>(address), kAlignment) - static_cast<std::int64_t>(address));
  lay_out(params, base, &plan);
  plan.parallel_for = parallel_for;
  switch (isa) {
#if defined(__x86_64__) && defined(MRA_CPU_X86)
    case CpuIsa::kAvx512:
      return avx512::run(plan);
    case CpuIsa::kAvx2:
      return avx2::run(plan);
#endif
    default:
      return portable::run(plan);
  }
}

}  // namespace mra
