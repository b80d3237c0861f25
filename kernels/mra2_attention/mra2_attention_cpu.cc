// The entry points of mra::Mra2Attention's CPU operator: the workspace, and the call of the chosen instruction set's code.
#include "mra2_attention/mra2_attention_cpu.h"

#include <algorithm>

#include "common/cpu_workspace.h"

namespace mra {
namespace {

// Heads are computed in groups: as many at a time as keep their scores, and their packed keys and values, below these sizes,
// one at least.
constexpr std::int64_t kScoreBytes = std::int64_t{64} << 20;
constexpr std::int64_t kPackedBytes = std::int64_t{32} << 20;
// From this many blocks on, queries, keys and values are copied head by head while they are pooled. A head's rows then lie together,
// not one to a page: reading them again and again costs more than the copy as soon as the pages are more than a core's TLB holds.
constexpr std::int64_t kPackedBlocks = 48;

// Lays the plan out in the workspace.
void lay_out(const Mra2AttentionParams& params, CpuIsa isa, CpuArena& arena, Mra2CpuPlan* plan) {
  plan->params = params;
  plan->head_dim = params.head_dim();
  plan->padded_dim = round_up(plan->head_dim, 16);
  plan->nb = params.blocks_per_seq();
  plan->padded_nb = round_up(plan->nb, 16);
  plan->heads = params.batch * params.num_heads;
  plan->selected = params.selected_blocks();
  const std::int64_t score_size = plan->nb * plan->padded_nb;
  const std::int64_t rows = plan->nb * kBlockSize;  // of one head, as all of these
  const bool half = isa == CpuIsa::kAvx512Fp16, reduced = half || isa == CpuIsa::kAvx512Bf16;
  const std::int64_t packed_rows = reduced || plan->nb < kPackedBlocks ? 0 : rows;
  const std::int64_t reduced_rows = reduced ? rows / 2 : 0;
  const std::int64_t reduced_key_dim = half ? round_up(plan->head_dim, 32) : plan->head_dim;
  const std::int64_t reduced_value_dim = half ? reduced_key_dim : plan->padded_dim;
  const std::int64_t reduced_query_dim = half ? reduced_key_dim : 0;
  const std::int64_t packed_size = packed_rows * (2 * plan->head_dim + plan->padded_dim) +
                                   reduced_rows * (reduced_query_dim + reduced_key_dim + reduced_value_dim);
  constexpr std::int64_t kFloat = sizeof(float);
  std::int64_t fitting = std::min(kScoreBytes / (kFloat * score_size), plan->heads);
  if (packed_size > 0) fitting = std::min(fitting, kPackedBytes / (kFloat * packed_size));
  fitting = std::max<std::int64_t>(1, fitting);
  const std::int64_t groups = std::max<std::int64_t>(1, (plan->heads + fitting - 1) / fitting);  // 0 heads: an empty batch
  plan->group_heads = std::max<std::int64_t>(1, (plan->heads + groups - 1) / groups);            // even groups

  arena.take(plan->token_bits, params.batch * plan->nb);
  arena.take(plan->token_counts, params.batch * plan->padded_nb);
  arena.take(plan->packed_query, plan->group_heads * packed_rows * plan->head_dim);
  arena.take(plan->packed_key, plan->group_heads * packed_rows * plan->head_dim);
  arena.take(plan->packed_value, plan->group_heads * packed_rows * plan->padded_dim);
  if (packed_rows == 0) plan->packed_query = plan->packed_key = plan->packed_value = nullptr;
  arena.take(plan->reduced_query, plan->group_heads * reduced_rows * reduced_query_dim);
  arena.take(plan->reduced_key, plan->group_heads * reduced_rows * reduced_key_dim);
  arena.take(plan->reduced_value, plan->group_heads * reduced_rows * reduced_value_dim);
  arena.take(plan->query_scales, half ? plan->group_heads * plan->nb : 0);
  arena.take(plan->key_scales, half ? plan->group_heads * plan->nb : 0);
  arena.take(plan->value_scales, half ? plan->group_heads * plan->nb : 0);
  arena.take(plan->pooled_query, plan->heads * plan->nb * plan->padded_dim);
  arena.take(plan->pooled_key, plan->heads * plan->head_dim * plan->padded_nb);
  arena.take(plan->pooled_value, plan->heads * plan->nb * plan->padded_dim);
  arena.take(plan->row_max, plan->heads * plan->nb);
  arena.take(plan->low_weight, plan->heads * plan->nb);
  arena.take(plan->row_flags, plan->heads * plan->nb);
  arena.take(plan->row_starts, plan->heads * (plan->nb + 1));
  arena.take(plan->columns, plan->heads * plan->selected);
  arena.take(plan->scores, plan->group_heads * score_size);
}

}  // namespace

std::size_t cpu_workspace_size(const Mra2AttentionParams& params, CpuIsa isa) noexcept {
  Mra2CpuPlan plan;
  CpuArena arena(nullptr);
  lay_out(params, isa, arena, &plan);
  return arena.bytes();
}

void mra2_attention_cpu(const Mra2AttentionParams& params, void* workspace, CpuIsa isa, ParallelFor parallel_for) noexcept {
  if (params.batch == 0) return;
  Mra2CpuPlan plan;
  CpuArena arena(workspace);
  lay_out(params, isa, arena, &plan);
  plan.parallel_for = parallel_for;
  switch (isa) {
#if defined(__x86_64__) && defined(MRA_CPU_X86)
#if defined(MRA_CPU_FP16)
    case CpuIsa::kAvx512Fp16:
      return avx512_fp16::run_mra2(plan);
#endif
    case CpuIsa::kAvx512Bf16:
      return avx512_bf16::run_mra2(plan);
    case CpuIsa::kAvx512:
      return avx512::run_mra2(plan);
    case CpuIsa::kAvx2:
      return avx2::run_mra2(plan);
#endif
    default:
      return portable::run_mra2(plan);
  }
}

}  // namespace mra
