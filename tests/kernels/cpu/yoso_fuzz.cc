// Fuzzes YOSO's CPU kernel against a twin that computes in double, one number at a time; built with sanitizers by the tests.
//
//   yoso_fuzz SEED COUNT ISA
//
// Inputs, constants, output and workspace are exactly as large as they must be and lie on the heap, so that AddressSanitizer
// sees any access outside them. Prints the number of cases compared and the largest error; exits 1 on a mismatch.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "yoso_attention/yoso_attention.h"

namespace {

using Params = mra::YosoAttentionParams;

struct Case {
  Params params;
  std::vector<float> query, key, value;  // [batch, seq_len, hidden_size]
  std::vector<std::int32_t> mask;        // [batch, seq_len]
  std::vector<std::int32_t> hashes;
  std::vector<float> weight;  // [num_heads, conv_window]
  bool special = false;       // holds NaN or Inf at tokens: only memory safety is judged
};

// The code of one row in one hash, by the definition.
std::vector<int> codes_of(const Case& c, std::int64_t head, const float* row) {
  const Params& p = c.params;
  const std::int64_t D = p.head_dim(), bits = p.hash_bits();
  std::vector<int> codes(p.num_hash, 0);
  const auto set = [&](std::int64_t number) { codes[number / p.hash_code_len] |= 1 << (number % p.hash_code_len); };
  if (p.fast_hash != 0) {
    const std::int64_t dim = p.transform_dim(), parts = p.parts();
    for (std::int64_t part = 0; part < parts; ++part) {
      std::vector<float> x(dim, 0.0f);
      std::copy(row, row + D, x.begin());
      for (int round = 0; round < 3; ++round) {
        for (std::int64_t d = 0; d < dim; ++d) x[d] *= static_cast<float>(c.hashes[((head * parts + part) * 3 + round) * dim + d]);
        for (std::int64_t stride = dim / 2; stride > 0; stride /= 2)
          for (std::int64_t d = 0; d < dim; ++d)
            if ((d & stride) == 0) {
              const float a = x[d], b = x[d + stride];
              x[d] = a + b;
              x[d + stride] = a - b;
            }
      }
      for (std::int64_t d = 0; d < dim; ++d)
        if (d * parts + part < bits && x[d] > 0) set(d * parts + part);
    }
    return codes;
  }
  float largest = 0;
  for (std::int64_t d = 0; d < D; ++d) largest = std::max(largest, std::fabs(row[d]));
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest < 2^exponent
  for (std::int64_t n = 0; n < bits; ++n) {
    std::int64_t sum = 0;
    for (std::int64_t d = 0; d < D; ++d) {
      const double scaled = std::ldexp(static_cast<double>(row[d]), std::min(10 - exponent, 127));
      sum += static_cast<std::int64_t>(std::nearbyint(scaled)) * c.hashes[(head * bits + n) * D + d];
    }
    if (sum > 0) set(n);
  }
  return codes;
}

// The twin: context [seq_len, head_dim] of one example and head.
std::vector<double> compute_twin(const Case& c, std::int64_t example, std::int64_t head) {
  const Params& p = c.params;
  const std::int64_t S = p.seq_len, D = p.head_dim();
  const auto row = [&](const std::vector<float>& x, std::int64_t s) {
    return x.data() + (example * S + s) * p.hidden_size + head * D;
  };
  const auto is_token = [&](std::int64_t s) { return s >= 0 && s < S && c.mask[example * S + s] != 0; };
  std::vector<std::vector<int>> query_codes(S), key_codes(S);
  if (p.lsh())
    for (std::int64_t s = 0; s < S; ++s)
      if (is_token(s)) query_codes[s] = codes_of(c, head, row(c.query, s)), key_codes[s] = codes_of(c, head, row(c.key, s));
  std::vector<double> context(S * D, 0.0);
  for (std::int64_t i = 0; i < S; ++i) {
    if (!is_token(i)) continue;
    double* to = &context[i * D];
    for (std::int64_t j = 0; j < S; ++j) {
      if (!is_token(j)) continue;
      double weight = 0;
      if (p.lsh()) {
        for (std::int64_t h = 0; h < p.num_hash; ++h) weight += query_codes[i][h] == key_codes[j][h];
        weight /= static_cast<double>(p.num_hash);
      } else {
        double dot = 0, qq = 0, kk = 0;
        for (std::int64_t d = 0; d < D; ++d) {
          const double q = row(c.query, i)[d], k = row(c.key, j)[d];
          dot += q * k, qq += q * q, kk += k * k;
        }
        const double cosine = dot / std::max(std::sqrt(qq), 1e-12) / std::max(std::sqrt(kk), 1e-12);
        weight =
            std::pow(1 - std::acos(std::clamp(cosine, -1.0, 1.0)) / 3.14159265358979323846, static_cast<double>(p.hash_code_len));
      }
      for (std::int64_t d = 0; d < D; ++d) to[d] += weight * row(c.value, j)[d];
    }
    double squares = 0;
    for (std::int64_t d = 0; d < D; ++d) squares += to[d] * to[d];
    for (std::int64_t d = 0; d < D; ++d) to[d] /= std::max(std::sqrt(squares), 1e-12);
    for (std::int64_t u = 0; u < p.conv_window; ++u) {
      const std::int64_t at = i + u - p.conv_window / 2;
      if (!is_token(at)) continue;
      for (std::int64_t d = 0; d < D; ++d) to[d] += static_cast<double>(c.weight[head * p.conv_window + u]) * row(c.value, at)[d];
    }
  }
  return context;
}

Case draw(std::mt19937_64& random) {
  const auto pick = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  std::normal_distribution<float> normal;
  Case c;
  Params& p = c.params;
  p.batch = pick(1, 2);
  p.num_heads = pick(1, 3);
  p.hidden_size = p.num_heads * 8 * (pick(0, 3) == 0 ? pick(1, 32) : pick(1, 8));
  p.seq_len = pick(0, 3) == 0 ? pick(1, 200) : pick(1, 70);
  p.mode = pick(0, 2) != 0;
  p.hash_code_len = pick(1, 12);
  p.num_hash = p.lsh() ? pick(1, 20) : 0;
  p.fast_hash = p.lsh() ? pick(0, 1) : 0;
  p.conv_window = pick(0, 2) == 0 ? 2 * pick(0, 40) + 1 : 0;
  const std::int64_t size = p.batch * p.seq_len * p.hidden_size;
  std::vector<float> common(p.hidden_size);  // so that cosines are not all near 0
  for (float& x : common) x = normal(random);
  for (auto* tensor : {&c.query, &c.key, &c.value}) {
    tensor->resize(size);
    for (std::int64_t i = 0; i < size; ++i) (*tensor)[i] = normal(random) + common[i % p.hidden_size];
  }
  c.mask.resize(p.batch * p.seq_len);
  const double keep = pick(0, 2) == 0 ? 1.0 : std::uniform_real_distribution<double>(0, 1)(random);
  for (auto& m : c.mask)
    m = std::uniform_real_distribution<double>(0, 1)(random) < keep ? static_cast<std::int32_t>(pick(1, 3)) : 0;
  c.special = pick(0, 5) == 0;
  const float poisons[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -3e38f, 1e-42f};
  for (std::int64_t i = 0; i < p.batch * p.seq_len; ++i) {
    if (c.mask[i] != 0 && !(c.special && pick(0, 9) == 0)) continue;  // at padding anything may stand
    for (auto* tensor : {&c.query, &c.key, &c.value})
      (*tensor)[i * p.hidden_size + pick(0, p.hidden_size - 1)] = poisons[pick(0, 3)];
  }
  if (p.lsh()) {
    std::int64_t dims[4], count = 1;
    const int rank = p.hash_constants_shape(dims);
    for (int i = 0; i < rank; ++i) count *= dims[i];
    c.hashes.resize(count);
    for (auto& x : c.hashes) x = static_cast<std::int32_t>(p.fast_hash != 0 ? 2 * pick(0, 1) - 1 : pick(-63, 63));
  }
  c.weight.resize(p.num_heads * p.conv_window);
  for (float& x : c.weight) x = normal(random);
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  std::mt19937_64 random(std::strtoull(argv[1], nullptr, 10));
  char message[512];
  mra::CpuIsa isa;
  if (!mra::choose_cpu_isa(argv[3], mra::Accuracy::kFp32, &isa, message, sizeof(message))) return std::puts(message), 2;
  int compared = 0, special = 0;
  double worst = 0;
  for (int number = 0; number < std::atoi(argv[2]); ++number) {
    Case c = draw(random);
    Params& p = c.params;
    if (!mra::validate(p, message, sizeof(message))) return std::puts(message), 1;
    const std::size_t size = c.query.size();
    const std::unique_ptr<float[]> context(new float[size]);
    std::memset(context.get(), 0xff, size * sizeof(float));
    const std::size_t bytes = mra::cpu_workspace_size(p, isa);
    const std::unique_ptr<char[]> workspace(new char[bytes]);
    std::memset(workspace.get(), 0xff, bytes);
    p.query = c.query.data(), p.key = c.key.data(), p.value = c.value.data();
    p.attention_mask = c.mask.data();
    p.hash_constants = c.hashes.data(), p.conv_weight = c.weight.data(), p.context = context.get();
    mra::yoso_attention_cpu(p, workspace.get(), isa, {});
    special += c.special;
    for (std::int64_t example = 0; example < p.batch && !c.special; ++example)
      for (std::int64_t head = 0; head < p.num_heads; ++head) {
        const std::vector<double> expected = compute_twin(c, example, head);
        double difference = 0, norm = 0;
        for (std::int64_t i = 0; i < p.seq_len * p.head_dim(); ++i) {
          const double actual =
              context[(example * p.seq_len + i / p.head_dim()) * p.hidden_size + head * p.head_dim() + i % p.head_dim()];
          difference += (actual - expected[i]) * (actual - expected[i]);
          norm += expected[i] * expected[i];
        }
        ++compared;
        const double error = std::sqrt(difference / std::max(norm, 1e-30));
        worst = std::max(worst, error);
        if (!(error <= 2e-5)) {
          std::printf(
              "case %d: relative error %g; batch=%lld heads=%lld seq_len=%lld head_dim=%lld mode=%lld hash_code_len=%lld "
              "num_hash=%lld fast_hash=%lld conv_window=%lld example=%lld head=%lld\n",
              number, error, (long long)p.batch, (long long)p.num_heads, (long long)p.seq_len, (long long)p.head_dim(),
              (long long)p.mode, (long long)p.hash_code_len, (long long)p.num_hash, (long long)p.fast_hash,
              (long long)p.conv_window, (long long)example, (long long)head);
          return 1;
        }
      }
  }
  std::printf("compared=%d special=%d worst=%g\n", compared, special, worst);
  return compared > 0 ? 0 : 1;
}
