// The CPU operators behind a C interface for ctypes, with a plain thread pool: no framework between the tests and the kernel.
#include <atomic>
#include <thread>
#include <vector>

#include "mra2_attention/mra2_attention.h"
#include "yoso_attention/yoso_attention.h"

namespace {

// `threads` of them share the tasks of each call; the pool is the number.
void run_on_threads(void* pool, void (*task)(void*, std::size_t), void* argument, std::size_t count) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) task(argument, i);
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < *static_cast<int*>(pool); ++i) threads.emplace_back(work);
  work();
  for (auto& thread : threads) thread.join();
}

}  // namespace

#define MRA_TEST_API extern "C" __attribute__((visibility("default")))

MRA_TEST_API int mra_test_validate(const mra::Mra2AttentionParams* params, char* message, std::size_t message_size) {
  return mra::validate(*params, message, message_size) ? 1 : 0;
}

MRA_TEST_API int mra_test_choose_isa(const char* name, std::int32_t accuracy, std::int32_t* isa, char* message,
                                     std::size_t message_size) {
  mra::CpuIsa chosen = mra::CpuIsa::kPortable;
  const bool ok = mra::choose_cpu_isa(name, static_cast<mra::Accuracy>(accuracy), &chosen, message, message_size);
  *isa = static_cast<std::int32_t>(chosen);
  return ok ? 1 : 0;
}

MRA_TEST_API std::size_t mra_test_workspace_size(const mra::Mra2AttentionParams* params, std::int32_t isa) {
  return mra::cpu_workspace_size(*params, static_cast<mra::CpuIsa>(isa));
}

MRA_TEST_API void mra_test_run(const mra::Mra2AttentionParams* params, void* workspace, std::int32_t isa, int threads) {
  mra::ParallelFor parallel_for;
  if (threads > 1) parallel_for = {run_on_threads, &threads};
  mra::mra2_attention_cpu(*params, workspace, static_cast<mra::CpuIsa>(isa), parallel_for);
}

MRA_TEST_API int mra_test_yoso_validate(const mra::YosoAttentionParams* params, char* message, std::size_t message_size) {
  return mra::validate(*params, message, message_size) ? 1 : 0;
}

MRA_TEST_API std::size_t mra_test_yoso_workspace_size(const mra::YosoAttentionParams* params, std::int32_t isa) {
  return mra::cpu_workspace_size(*params, static_cast<mra::CpuIsa>(isa));
}

MRA_TEST_API void mra_test_yoso_run(const mra::YosoAttentionParams* params, void* workspace, std::int32_t isa, int threads) {
  mra::ParallelFor parallel_for;
  if (threads > 1) parallel_for = {run_on_threads, &threads};
  mra::yoso_attention_cpu(*params, workspace, static_cast<mra::CpuIsa>(isa), parallel_for);
}
