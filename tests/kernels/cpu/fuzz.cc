// Fuzzes the CPU kernel against a twin that computes in double, one number at a time; built with sanitizers by the tests.
//
//   fuzz SEED COUNT ISA
//
// Inputs and output are exactly as large as they must be and lie on the heap, so that AddressSanitizer sees any access
// outside them; so does the workspace. Prints the number of cases compared and the largest error; exits 1 on a mismatch.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "mra2_attention/mra2_attention.h"

namespace {

using mra::kBlockSize;
using Params = mra::Mra2AttentionParams;

struct Case {
  Params params;
  std::vector<float> query, key, value;  // [batch, seq_len, hidden_size]
  std::vector<std::int32_t> mask;        // [batch, seq_len]
  bool special = false;                  // holds NaN or Inf at tokens: only memory safety is judged
};

// The twin: one (example, head). Returns false where float32 could select otherwise, and the result cannot be compared.
bool compute_twin(const Case& c, std::int64_t example, std::int64_t head, std::vector<double>& context) {
  const Params& p = c.params;
  const std::int64_t S = p.seq_len, D = p.head_dim(), nb = p.blocks_per_seq();
  const auto at = [&](const std::vector<float>& x, std::int64_t s, std::int64_t d) {
    return static_cast<double>(x[(example * S + s) * p.hidden_size + head * D + d]);
  };
  const auto is_token = [&](std::int64_t s) { return s < S && c.mask[example * S + s] != 0; };
  std::vector<double> count(nb, 0), q(nb * D, 0), k(nb * D, 0), v(nb * D, 0);
  for (std::int64_t s = 0; s < S; ++s) {
    if (!is_token(s)) continue;
    const std::int64_t block = s / kBlockSize;
    count[block] += 1;
    for (std::int64_t d = 0; d < D; ++d) {
      q[block * D + d] += at(c.query, s, d);
      k[block * D + d] += at(c.key, s, d);
      v[block * D + d] += at(c.value, s, d);
    }
  }
  for (std::int64_t i = 0; i < nb * D; ++i) {
    const double divisor = count[i / D] + 1e-6;
    q[i] /= divisor, k[i] /= divisor, v[i] /= divisor;
  }
  std::vector<double> logit(nb * nb), row_max(nb, -1e300);
  std::vector<float> score(nb * nb);
  for (std::int64_t a = 0; a < nb; ++a) {
    for (std::int64_t b = 0; b < nb; ++b) {
      double dot = 0;
      for (std::int64_t d = 0; d < D; ++d) dot += q[a * D + d] * k[b * D + d];
      logit[a * nb + b] = p.scale * dot;
      row_max[a] = std::max(row_max[a], logit[a * nb + b]);
    }
    for (std::int64_t b = 0; b < nb; ++b) {
      if (count[a] == 0 || count[b] == 0) logit[a * nb + b] -= 1e4;
      // In float, as the kernel has it: beside 1e4 and 5e3 its roundings make ties.
      float s = static_cast<float>(logit[a * nb + b]) - static_cast<float>(row_max[a]);
      if (logit[a * nb + b] == row_max[a]) s = 0;
      if (p.initial_prior_diagonal_n_blocks > 0 && std::llabs(a - b) <= p.initial_prior_diagonal_n_blocks / 2) s += 5e3f;
      if (a < p.initial_prior_first_n_blocks) s += 5e3f;
      if (b < p.initial_prior_first_n_blocks) s += 5e3f;
      score[a * nb + b] = s;
    }
  }
  std::vector<std::int64_t> order(nb * nb);
  for (std::int64_t i = 0; i < nb * nb; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t x, std::int64_t y) { return score[x] > score[y]; });
  const std::int64_t T = p.selected_blocks();
  std::vector<bool> selected(nb * nb, false);
  for (std::int64_t i = 0; i < T; ++i) selected[order[i]] = true;
  // Unclear: blocks on both sides of the cut whose scores float32 could exchange, and whose exchange would be seen.
  const float cut = score[order[T - 1]];
  const float reach = std::fabs(cut) > 2500 ? 4e-3f : 4e-5f * std::max(1.0f, std::fabs(cut));
  bool near_chosen = false, near_rejected = false;
  for (std::int64_t i = 0; i < nb * nb; ++i) {
    if (std::fabs(score[i] - cut) > reach || count[i / nb] == 0) continue;
    if (score[i] == cut && cut == 0) continue;  // a row's best block scores 0 exactly
    (selected[i] ? near_chosen : near_rejected) = true;
  }
  if (near_chosen && near_rejected) return false;

  const bool full = p.approx_mode == 0;
  for (std::int64_t s = 0; s < S; ++s) {
    if (!is_token(s)) continue;
    const std::int64_t a = s / kBlockSize;
    bool any = false;
    double h = -1e300;
    std::vector<double> g;  // [selected blocks of row a, 32]
    for (std::int64_t b = 0; b < nb; ++b) {
      if (!selected[a * nb + b]) continue;
      any = true;
      for (std::int64_t j = b * kBlockSize; j < (b + 1) * kBlockSize; ++j) {
        double dot = 0;
        if (is_token(j))
          for (std::int64_t d = 0; d < D; ++d) dot += at(c.query, s, d) * at(c.key, j, d);
        g.push_back(p.scale * dot);
        h = std::max(h, g.back());
      }
    }
    if (!any) h = -1e5;
    const double m = full ? std::max(row_max[a], h) : h;
    double total = 1e-6;
    std::vector<double> sum(D, 0);
    std::size_t next = 0;
    for (std::int64_t b = 0; b < nb; ++b) {
      if (selected[a * nb + b]) {
        for (std::int64_t j = b * kBlockSize; j < (b + 1) * kBlockSize; ++j, ++next) {
          if (!is_token(j)) continue;
          const double w = std::exp(g[next] - m);
          total += w;
          for (std::int64_t d = 0; d < D; ++d) sum[d] += w * at(c.value, j, d);
        }
      } else if (full && count[b] > 0) {
        const double w = count[b] * std::exp(logit[a * nb + b] - m);
        total += w;
        for (std::int64_t d = 0; d < D; ++d) sum[d] += w * v[b * D + d];
      }
    }
    for (std::int64_t d = 0; d < D; ++d) context[s * D + d] = sum[d] / total;
  }
  return true;
}

// What rounding query and key to bfloat16 may change of a logit of this head, at most: 2^-9 of each factor.
double logit_rounding(const Case& c, std::int64_t example, std::int64_t head) {
  const Params& p = c.params;
  double largest[2] = {0, 0};
  for (std::int64_t s = 0; s < p.seq_len; ++s) {
    if (c.mask[static_cast<std::size_t>(example * p.seq_len + s)] == 0) continue;
    for (int t = 0; t < 2; ++t) {
      double square = 0;
      for (std::int64_t d = 0; d < p.head_dim(); ++d) {
        const std::int64_t i = (example * p.seq_len + s) * p.hidden_size + head * p.head_dim() + d;
        const double x = static_cast<double>((t == 0 ? c.query : c.key)[static_cast<std::size_t>(i)]);
        square += x * x;
      }
      largest[t] = std::max(largest[t], std::sqrt(square));
    }
  }
  return std::abs(static_cast<double>(p.scale)) * largest[0] * largest[1] / 256;
}

Case make_case(std::mt19937_64& random) {
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n)); };
  Case c;
  Params& p = c.params;
  const bool large = below(100) == 0;  // few and narrow: the double-precision twin is slow
  p.num_heads = large ? 1 : 1 + below(3);
  const std::int64_t head_dim = large ? 8 * (1 + below(2)) : below(3) == 0 ? 8 * (1 + below(32)) : 8 * (1 + below(10));
  p.hidden_size = p.num_heads * head_dim;
  p.batch = large ? 1 : 1 + below(2);
  p.seq_len = large ? 3000 + below(200) : below(8) == 0 ? 1 + below(1200) : 1 + below(300);
  const std::int64_t nb = p.blocks_per_seq();
  const std::int64_t budgets[] = {1, 1 + below(nb * nb), std::min(nb * nb, nb * (1 + below(4))), nb * nb, INT64_MAX};
  p.num_blocks = budgets[below(5)];
  p.approx_mode = below(2);
  const std::int64_t priors[] = {0, 0, 1, 2, below(nb + 2), INT64_MAX};
  p.initial_prior_first_n_blocks = priors[below(6)];
  p.initial_prior_diagonal_n_blocks = priors[below(6)];
  const float scales[] = {1.0f / std::sqrt(static_cast<float>(head_dim)), 0.0f, -0.1f, 1.0f};
  p.scale = scales[below(8) < 5 ? 0 : below(4)];

  std::normal_distribution<float> normal;
  const float spread = below(4) == 0 ? 3.0f : 1.0f;
  const std::size_t n = static_cast<std::size_t>(p.batch * p.seq_len * p.hidden_size);
  for (auto* x : {&c.query, &c.key, &c.value}) {
    x->resize(n);
    std::vector<float> mean(static_cast<std::size_t>(p.hidden_size));
    for (std::size_t i = 0; i < n; ++i) {
      if (i / static_cast<std::size_t>(p.hidden_size) % kBlockSize == 0) mean[i % mean.size()] = normal(random) / 2;
      (*x)[i] = (mean[i % mean.size()] + normal(random)) * (x == &c.value ? 1.0f : spread);
    }
  }
  c.mask.resize(static_cast<std::size_t>(p.batch * p.seq_len));
  const std::int64_t kind = below(5);
  for (std::int64_t i = 0; i < p.batch; ++i) {
    const std::int64_t length = below(p.seq_len + 1);
    const std::int64_t hole = below(p.seq_len), hole_end = hole + below(p.seq_len);
    for (std::int64_t s = 0; s < p.seq_len; ++s) {
      bool token = true;
      if (kind == 1) token = s < length;
      if (kind == 2) token = s >= length;
      if (kind == 3) token = below(3) != 0;
      if (kind == 4) token = s < hole || s >= hole_end;
      c.mask[static_cast<std::size_t>(i * p.seq_len + s)] = token ? (below(2) ? 1 : -5) : 0;
    }
  }
  // Padding may hold anything.
  const float odd[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -1e38f};
  c.special = below(6) == 0;
  for (std::size_t i = 0; i < n; ++i) {
    const bool padded = c.mask[i / static_cast<std::size_t>(p.hidden_size)] == 0;
    if (padded || (c.special && below(500) == 0)) (below(2) ? c.query : below(2) ? c.key : c.value)[i] = odd[below(3)];
  }
  return c;
}

std::uint16_t to_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<std::uint16_t>(bits >> 16);
}
float from_bfloat16(std::uint16_t x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::uint64_t seed = std::strtoull(argv[1], nullptr, 10);
  const int count = std::atoi(argv[2]);
  mra::CpuIsa isa;
  char message[512];
  if (!mra::choose_cpu_isa(argv[3], mra::Accuracy::kFp32, &isa, message, sizeof(message)))
    return std::fprintf(stderr, "%s\n", message), 2;

  double worst = 0;
  int compared = 0, unclear = 0, special = 0;
  for (int number = 0; number < count; ++number) {
    std::mt19937_64 random(seed * 1000003 + static_cast<std::uint64_t>(number));
    Case c = make_case(random);
    Params& p = c.params;
    const std::size_t n = c.query.size();
    // Every third case is bfloat16: its inputs are cut to it first, so that the twin has the same ones.
    const bool half = number % 3 == 2;
    std::unique_ptr<std::uint16_t[]> halves[3];
    const void* inputs[] = {c.query.data(), c.key.data(), c.value.data()};
    if (half) {
      std::vector<float>* tensors[] = {&c.query, &c.key, &c.value};
      for (int t = 0; t < 3; ++t) {
        halves[t].reset(new std::uint16_t[n]);
        for (std::size_t i = 0; i < n; ++i) (*tensors[t])[i] = from_bfloat16(halves[t][i] = to_bfloat16((*tensors[t])[i]));
        inputs[t] = halves[t].get();
      }
    }
    const std::size_t bytes = n * (half ? 2 : 4);
    std::unique_ptr<unsigned char[]> context(new unsigned char[bytes]);
    std::memset(context.get(), 0xff, bytes);
    p.query = inputs[0], p.key = inputs[1], p.value = inputs[2];
    p.attention_mask = c.mask.data();
    p.context = context.get();
    p.dtype = half ? mra::DType::kBFloat16 : mra::DType::kFloat32;
    if (!mra::validate(p, message, sizeof(message))) return std::printf("case %d: %s\n", number, message), 1;
    const std::size_t workspace_size = mra::cpu_workspace_size(p, isa);
    std::unique_ptr<unsigned char[]> workspace(new unsigned char[workspace_size]);
    std::memset(workspace.get(), 0xff, workspace_size);
    mra::mra2_attention_cpu(p, workspace.get(), isa, {});

    const auto actual = [&](std::size_t i) {
      if (half) return static_cast<double>(from_bfloat16(reinterpret_cast<std::uint16_t*>(context.get())[i]));
      return static_cast<double>(reinterpret_cast<float*>(context.get())[i]);
    };
    if (c.special) ++special;
    for (std::int64_t example = 0; example < p.batch; ++example)
      for (std::int64_t head = 0; head < p.num_heads; ++head) {
        const std::int64_t D = p.head_dim();
        std::vector<double> expected(static_cast<std::size_t>(p.seq_len * D), 0.0);
        const bool clear = !c.special && compute_twin(c, example, head, expected);
        double difference = 0, norm = 0;
        for (std::int64_t s = 0; s < p.seq_len; ++s)
          for (std::int64_t d = 0; d < D; ++d) {
            const double x = actual(static_cast<std::size_t>((example * p.seq_len + s) * p.hidden_size + head * D + d));
            const double e = expected[static_cast<std::size_t>(s * D + d)];
            if (c.mask[static_cast<std::size_t>(example * p.seq_len + s)] == 0 && x != 0)
              return std::printf("case %d: a padded token is %g, not 0\n", number, x), 1;
            difference += (x - e) * (x - e);
            norm += e * e;
          }
        if (c.special) continue;
        if (!clear) {
          ++unclear;
          continue;
        }
        ++compared;
        const double error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
        const bool reduced = isa == mra::CpuIsa::kAvx512Bf16 || isa == mra::CpuIsa::kAvx512Fp16;
        const double tolerance = (half ? 4e-3 : 2e-5) + (reduced ? 3e-3 + logit_rounding(c, example, head) : 0.0);
        worst = std::max(worst, half ? 0.0 : error);
        if (!(error <= tolerance)) {
          std::printf(
              "case %d: relative error %g; dtype=%d batch=%lld heads=%lld seq_len=%lld head_dim=%lld num_blocks=%lld mode=%lld "
              "first_n=%lld diagonal_n=%lld scale=%g example=%lld head=%lld\n",
              number, error, static_cast<int>(p.dtype), (long long)p.batch, (long long)p.num_heads, (long long)p.seq_len,
              (long long)D, (long long)p.num_blocks, (long long)p.approx_mode, (long long)p.initial_prior_first_n_blocks,
              (long long)p.initial_prior_diagonal_n_blocks, static_cast<double>(p.scale), (long long)example, (long long)head);
          return 1;
        }
      }
  }
  std::printf("compared=%d unclear=%d special=%d worst=%g\n", compared, unclear, special, worst);
  return compared > 0 ? 0 : 1;
}
