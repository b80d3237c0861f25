// Measures how many multiply-adds per second this machine's cores do at once, from registers: the floor of any kernel's time.
//
//   fma_peak THREADS -> GFLOP/s, two per multiply-add, the best of several tries
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr long kRounds = 1000000;  // some milliseconds: short enough to be left alone on a busy machine
constexpr int kChains = 12;        // independent chains: more than the latency of a multiply-add times its throughput

using Vec4 = float __attribute__((vector_size(16)));
using Vec8 = float __attribute__((vector_size(32)));
using Vec16 = float __attribute__((vector_size(64)));

template <typename Vec>
__attribute__((always_inline)) inline float run() {
  Vec chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = Vec{} + 0.1f * static_cast<float>(i);
  Vec factor = Vec{} + 0.999f, term = Vec{} + 0.001f;
  for (long round = 0; round < kRounds; ++round)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + term;
  float sum = 0;
  for (int i = 0; i < kChains; ++i) sum += chain[i][0];
  return sum;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) float run_avx512() { return run<Vec16>(); }
__attribute__((target("avx2,fma"))) float run_avx2() { return run<Vec8>(); }
#endif
float run_portable() { return run<Vec4>(); }

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  float (*work)() = run_portable;
  int lanes = 4;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) work = run_avx2, lanes = 8;
  if (__builtin_cpu_supports("avx512f")) work = run_avx512, lanes = 16;
#endif
  double best = 0;
  std::atomic<float> sink{0};
  for (int attempt = 0; attempt < 40; ++attempt) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([&] { sink = work(); });
    sink = work();
    for (auto& thread : others) thread.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2.0 * threads * kRounds * kChains * lanes / seconds / 1e9);
  }
  std::printf("%.1f\n", best);
}
