// The entry points of YOSO's CPU operator: the workspace, and the call of the chosen instruction set's code.
#include "yoso_attention_cpu.h"

#include <algorithm>
#include <type_traits>

namespace mra {
namespace {

constexpr std::int64_t kAlignment = 64;
// Heads are computed in groups: as many at a time as keep what is packed of them below this, one at least.
constexpr std::int64_t kGroupBytes = std::int64_t{128} << 20;
// The tables of one slot stay in the second-level cache.
constexpr std::int64_t kTableBytes = std::int64_t{256} << 10;
// As many slots as keep all tables below this, some at least: a task beyond them takes the tables of the one before.
constexpr std::int64_t kSlotBytes = std::int64_t{16} << 20;
constexpr std::int64_t kMinSlots = 4, kMaxSlots = 64;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Lays the plan out from `base` on, and returns the bytes it takes. `base` may be null to learn them.
std::size_t lay_out(const YosoAttentionParams& params, char* base, YosoCpuPlan* plan) {
  *plan = YosoCpuPlan{};
  plan->params = params;
  plan->head_dim = params.head_dim();
  plan->padded_dim = round_up(plan->head_dim, kYosoSlice);
  plan->nb = (params.seq_len + kYosoRows - 1) / kYosoRows;
  plan->padded_rows = plan->nb * kYosoRows;
  plan->heads = params.batch * params.num_heads;
  const std::int64_t float_size = sizeof(float), code_size = sizeof(std::uint16_t);
  const std::int64_t head_bytes = params.lsh()
                                      ? plan->padded_rows * (2 * plan->padded_dim * float_size + 2 * params.num_hash * code_size)
                                      : plan->padded_rows * (plan->head_dim + plan->padded_dim) * float_size;
  plan->group_heads = std::max<std::int64_t>(1, std::min(kGroupBytes / head_bytes, plan->heads));

  std::int64_t used = 0;
  const auto take = [&](auto*& pointer, std::int64_t count) {
    using T = std::remove_reference_t<decltype(*pointer)>;
    pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used = round_up(used + count * static_cast<std::int64_t>(sizeof(T)), kAlignment);
  };
  take(plan->token_bits, params.batch * plan->nb);
  take(plan->row_starts, params.batch * (plan->nb + 1));
  const std::int64_t rows = plan->group_heads * plan->padded_rows;
  if (params.lsh()) {
    const std::int64_t table = (std::int64_t{1} << params.hash_code_len) * kYosoSlice;
    plan->tables = std::min<std::int64_t>({std::max<std::int64_t>(1, kTableBytes / (table * float_size)), kYosoMaxTables, params.num_hash});
    const std::int64_t slots = std::clamp(kSlotBytes / (plan->tables * table * float_size), kMinSlots, kMaxSlots);
    plan->table_slots = std::min(plan->group_heads * (plan->padded_dim / kYosoSlice), slots);
    take(plan->query_codes, rows * params.num_hash);
    take(plan->key_codes, rows * params.num_hash);
    take(plan->value_slices, rows * plan->padded_dim);
    take(plan->sum_slices, rows * plan->padded_dim);
    take(plan->table_memory, plan->table_slots * plan->tables * table);
  } else {
    take(plan->keys, rows * plan->head_dim);
    take(plan->values, rows * plan->padded_dim);
  }
  return static_cast<std::size_t>(used);
}

}  // namespace

std::size_t cpu_workspace_size(const YosoAttentionParams& params) noexcept {
  YosoCpuPlan plan;
  return lay_out(params, nullptr, &plan) + kAlignment;
}

void yoso_attention_cpu(const YosoAttentionParams& params, void* workspace, CpuIsa isa, ParallelFor parallel_for) noexcept {
  if (params.batch == 0) return;
  YosoCpuPlan plan;
  const auto address = reinterpret_cast<std::uintptr_t>(workspace);
  lay_out(params, static_cast<char*>(workspace) + (kAlignment - static_cast<std::int64_t>(address % kAlignment)) % kAlignment, &plan);
  plan.parallel_for = parallel_for;
  switch (isa) {
#if defined(__x86_64__) && defined(MRA_CPU_X86)
    case CpuIsa::kAvx512:
      return avx512::run_yoso(plan);
    case CpuIsa::kAvx2:
      return avx2::run_yoso(plan);
#endif
    default:
      return portable::run_yoso(plan);
  }
}

}  // namespace mra
