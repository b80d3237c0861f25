// The entry points of YOSO's CPU operator: the workspace, and the call of the chosen instruction set's code.
#include "yoso_attention/yoso_attention_cpu.h"

#include <algorithm>

#include "common/cpu_workspace.h"

namespace mra {
namespace {

// Heads are computed in groups: as many at a time as keep what is packed of them below this, one at least.
constexpr std::int64_t kGroupBytes = std::int64_t{128} << 20;
// The tables of one slot stay in the second-level cache.
constexpr std::int64_t kTableBytes = std::int64_t{256} << 10;
// As many slots as keep all tables below this, some at least: a task beyond them takes the tables of the one before.
constexpr std::int64_t kSlotBytes = std::int64_t{16} << 20;
constexpr std::int64_t kMinSlots = 4, kMaxSlots = 64;

// Lays the plan out in the workspace.
void lay_out(const YosoAttentionParams& params, CpuArena& arena, YosoCpuPlan* plan) {
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

  arena.take(plan->token_bits, params.batch * plan->nb);
  arena.take(plan->row_starts, params.batch * (plan->nb + 1));
  const std::int64_t rows = plan->group_heads * plan->padded_rows;
  if (params.lsh()) {
    const std::int64_t table = (std::int64_t{1} << params.hash_code_len) * kYosoSlice;
    plan->tables =
        std::min<std::int64_t>({std::max<std::int64_t>(1, kTableBytes / (table * float_size)), kYosoMaxTables, params.num_hash});
    const std::int64_t slots = std::clamp(kSlotBytes / (plan->tables * table * float_size), kMinSlots, kMaxSlots);
    plan->table_slots = std::min(plan->group_heads * (plan->padded_dim / kYosoSlice), slots);
    arena.take(plan->query_codes, rows * params.num_hash);
    arena.take(plan->key_codes, rows * params.num_hash);
    arena.take(plan->value_slices, rows * plan->padded_dim);
    arena.take(plan->sum_slices, rows * plan->padded_dim);
    arena.take(plan->table_memory, plan->table_slots * plan->tables * table);
  } else {
    arena.take(plan->keys, rows * plan->head_dim);
    arena.take(plan->values, rows * plan->padded_dim);
  }
}

}  // namespace

std::size_t cpu_workspace_size(const YosoAttentionParams& params, CpuIsa) noexcept {
  YosoCpuPlan plan;
  CpuArena arena(nullptr);
  lay_out(params, arena, &plan);
  return arena.bytes();
}

void yoso_attention_cpu(const YosoAttentionParams& params, void* workspace, CpuIsa isa, ParallelFor parallel_for) noexcept {
  if (params.batch == 0) return;
  YosoCpuPlan plan;
  CpuArena arena(workspace);
  lay_out(params, arena, &plan);
  plan.parallel_for = parallel_for;
  switch (isa) {
#if defined(__x86_64__) && defined(MRA_CPU_X86)
    case CpuIsa::kAvx512Bf16:  // they have none of their own
    case CpuIsa::kAvx512Fp16:
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
