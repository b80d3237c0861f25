// The operators as functions of C: mra_call_Mra2Attention and mra_call_YosoAttention, for programs that have this library and no
// runtime that could call it. OpenVINO's nodes in Python are such a program (mra_export/openvino/python_ops.py).
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "mra2_attention/mra2_attention.h"
#include "yoso_attention/yoso_attention.h"

namespace mra {
namespace {

// ParallelFor::run on threads that live as long as it does; `pool` points to how many, this one included.
void run_on_threads(void* pool, void (*task)(void*, std::size_t), void* argument, std::size_t count) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i; (i = next.fetch_add(1)) < count;) task(argument, i);
  };
  std::vector<std::thread> others;
  try {
    others.resize(std::min(*static_cast<std::size_t*>(pool), count) - (count > 0 ? 1 : 0));
    for (std::thread& other : others) other = std::thread(work);
  } catch (const std::exception&) {  // no memory, or no more threads: those that are there do it all
  }
  work();
  for (std::thread& other : others)
    if (other.joinable()) other.join();
}

template <typename Params, auto run>
bool call(const Params& params, const char* accuracy_name, std::size_t threads, char* message, std::size_t message_size) {
  Accuracy accuracy = Accuracy::kFp32;
  CpuIsa isa = CpuIsa::kPortable;
  if (!validate(params, message, message_size) || !parse_accuracy("accuracy", accuracy_name, &accuracy, message, message_size) ||
      !choose_cpu_isa(std::getenv("MRA_CPU_ISA"), accuracy, &isa, message, message_size))
    return false;
  if (params.batch == 0) return true;
  const std::size_t size = cpu_workspace_size(params, isa);
  const std::unique_ptr<char[]> workspace(new (std::nothrow) char[size]);
  if (workspace == nullptr) return Refusal{message, message_size}("no memory for the operator's workspace of %zu bytes.", size);
  threads = std::max<std::size_t>(threads != 0 ? threads : std::thread::hardware_concurrency(), 1);
  run(params, workspace.get(), isa, {run_on_threads, &threads});
  return true;
}

}  // namespace
}  // namespace mra

// Both return 1; or 0, with what is wrong in `message`, as validate() writes it. `params` are those of the operator, with every
// tensor that its attributes ask for; `accuracy` is a level of parse_accuracy; `threads` 0 means one for each processor.
extern "C" __attribute__((visibility("default"))) int mra_call_Mra2Attention(const mra::Mra2AttentionParams* params,
                                                                             const char* accuracy, std::size_t threads,
                                                                             char* message, std::size_t message_size) {
  return mra::call<mra::Mra2AttentionParams, mra::mra2_attention_cpu>(*params, accuracy, threads, message, message_size);
}

extern "C" __attribute__((visibility("default"))) int mra_call_YosoAttention(const mra::YosoAttentionParams* params,
                                                                             const char* accuracy, std::size_t threads,
                                                                             char* message, std::size_t message_size) {
  return mra::call<mra::YosoAttentionParams, mra::yoso_attention_cpu>(*params, accuracy, threads, message, message_size);
}
