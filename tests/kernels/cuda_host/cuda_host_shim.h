// CUDA device code on the host: every CUDA thread of a block is a fiber, and blocks run one after another.
//
// Original to this project. It executes the CUDA kernels with the real launch geometry: barriers, warp collectives, atomics, dynamic
// shared memory of exactly the requested size, asynchronous copies, ldmatrix and mma with the lane layout of the PTX manual. Misuse
// ends the process with a message: a barrier or a collective that not all of its threads reach, lanes of a warp in different
// collectives, misaligned vector accesses of copies, more shared memory than an architecture has.
//
// Environment (read at each launch), so that the tests can be hostile:
//   MRA_HOST_ORDER  = forward | reverse | random[:seed]   which ready fiber runs next
//   MRA_HOST_COPIES = late | early                         asynchronous copies happen at the wait, or when they are issued
//   MRA_HOST_LOADED = 1                                    a kernel must have been loaded before it is launched
// Under ThreadSanitizer each fiber is a thread of its own to the sanitizer, and only what synchronises on a GPU synchronises there.
#pragma once

#include <vector_functions.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline

namespace cuda_host {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

// What the running fiber sees as its built-in variables.
struct Context {
  Dim thread, block, block_dim, grid_dim;
};
extern Context* g_context;

// The runtime, in cuda_host_runtime.cc, which is never instrumented.
void run_grid(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body);
unsigned char* shared_memory();
std::size_t shared_bytes();
void barrier();
void fence();
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

constexpr int kLanes = 32;
constexpr int kWords = 8;
enum class Collective { kShuffle, kBallot, kSync, kLoadMatrix, kMma, kMatch };
// Deposits `words` of this lane, waits for all lanes of `mask` in the same collective, and returns every lane's deposit.
using Deposits = std::uint32_t[kLanes][kWords];
const Deposits& exchange(Collective kind, unsigned mask, const std::uint32_t* words, int count);
int lane();
long launches();  // of this process
// Kernels that were loaded; with MRA_HOST_LOADED=1 in the environment another one must not be launched.
void note_loaded(const void* kernel);
void check_loaded(const void* kernel);

const float* half_values();  // [65536], of every float16

struct Copy {
  void* target;
  const void* source;
  bool valid;
};
std::vector<std::vector<Copy>>& copy_groups();  // of this thread; the last one is open
bool early_copies();

inline void perform(const Copy& copy) {
  if (copy.valid)
    std::memcpy(copy.target, copy.source, 16);
  else
    std::memset(copy.target, 0, 16);
}

// Waits until at most `pending` of this thread's closed groups are under way.
inline void finish_copies(std::size_t pending) {
  auto& groups = copy_groups();
  while (groups.size() > pending + 1) {
    for (const auto& copy : groups.front()) perform(copy);
    groups.erase(groups.begin());
  }
}

// A kernel as nvcc compiled it, translated to run here (ptx/ptx_runtime.h): it takes a pointer to each parameter.
using Translated = void (*)(const unsigned char* const* parameters);
enum class Program { kSource, kTranslated, kMissing };
// What is to run in place of `kernel`: itself, or `*translated` where the tests supply it.
Program program(const void* kernel, unsigned threads, std::size_t shared_bytes, Translated* translated);

}  // namespace cuda_host

#define threadIdx (::cuda_host::g_context->thread)
#define blockIdx (::cuda_host::g_context->block)
#define blockDim (::cuda_host::g_context->block_dim)
#define gridDim (::cuda_host::g_context->grid_dim)

inline void __syncthreads() { ::cuda_host::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { ::cuda_host::exchange(::cuda_host::Collective::kSync, mask, nullptr, 0); }
inline void __threadfence() { ::cuda_host::fence(); }

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const std::uint32_t own = predicate;
  const auto& all = ::cuda_host::exchange(::cuda_host::Collective::kBallot, mask, &own, 1);
  unsigned result = 0;
  for (int i = 0; i < ::cuda_host::kLanes; ++i)
    if (mask >> i & 1u) result |= all[i][0] << i;
  return result;
}

inline unsigned __match_any_sync(unsigned mask, unsigned value) {
  const std::uint32_t own = value;
  const auto& all = ::cuda_host::exchange(::cuda_host::Collective::kMatch, mask, &own, 1);
  unsigned result = 0;
  for (int i = 0; i < ::cuda_host::kLanes; ++i)
    if ((mask >> i & 1u) != 0 && all[i][0] == own) result |= 1u << i;
  return result;
}

template <typename T>
T cuda_host_shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4);
  std::uint32_t own;
  std::memcpy(&own, &value, 4);
  const auto& all = ::cuda_host::exchange(::cuda_host::Collective::kShuffle, mask, &own, 1);
  if (source < 0 || source >= ::cuda_host::kLanes) source = ::cuda_host::lane();
  if ((mask >> source & 1u) == 0) ::cuda_host::fail("shuffle from lane %d, which is not in mask %08x", source, mask);
  std::memcpy(&value, &all[source][0], 4);
  return value;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return cuda_host_shuffle(mask, value, source & 31);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return cuda_host_shuffle(mask, value, ::cuda_host::lane() ^ lanes);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  return cuda_host_shuffle(mask, value, ::cuda_host::lane() - static_cast<int>(delta));
}

inline std::uint32_t atomicAdd(std::uint32_t* address, std::uint32_t value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);  // as on a GPU: what orders memory is __threadfence()
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __uint_as_float(std::uint32_t x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline std::uint32_t __float_as_uint(float x) {
  std::uint32_t y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

namespace mra::cuda {

inline unsigned char* dynamic_shared() { return ::cuda_host::shared_memory(); }

inline void copy_async_16(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0) ::cuda_host::fail("cp.async to a misaligned shared address");
  if (reinterpret_cast<std::uintptr_t>(global) % 16 != 0) ::cuda_host::fail("cp.async from a misaligned global address");
  const ::cuda_host::Copy copy{shared, global, valid};
  if (::cuda_host::early_copies()) return ::cuda_host::perform(copy);
  ::cuda_host::copy_groups().back().push_back(copy);
}
inline void copy_async_commit() { ::cuda_host::copy_groups().emplace_back(); }
template <int kPending>
void copy_async_wait() {
  ::cuda_host::finish_copies(kPending);
}

// The 16 bytes of row r of matrix i are read by the lane that names them, 8 i + r.
inline void load_matrix(std::uint32_t (&out)[4], const void* shared_row, bool transposed) {
  if (reinterpret_cast<std::uintptr_t>(shared_row) % 16 != 0) ::cuda_host::fail("ldmatrix from a misaligned address");
  std::uint32_t own[4];
  std::memcpy(own, shared_row, 16);
  const auto& all = ::cuda_host::exchange(::cuda_host::Collective::kLoadMatrix, 0xffffffffu, own, 4);
  const int lane = ::cuda_host::lane();
  const auto element = [&](int matrix, int row, int column) -> std::uint32_t {
    return all[matrix * 8 + row][column / 2] >> (column % 2 * 16) & 0xffffu;
  };
  for (int i = 0; i < 4; ++i) {
    const int major = lane / 4;
    const int minor = lane % 4 * 2;
    out[i] = transposed ? element(i, minor, major) | element(i, minor + 1, major) << 16
                        : element(i, major, minor) | element(i, major, minor + 1) << 16;
  }
}
inline void load_matrix_x4(std::uint32_t (&out)[4], const void* shared_row) { load_matrix(out, shared_row, false); }
inline void load_matrix_x4_transposed(std::uint32_t (&out)[4], const void* shared_row) { load_matrix(out, shared_row, true); }

template <typename T>
float element_to_float(std::uint32_t bits);
template <>
inline float element_to_float<__half>(std::uint32_t bits) {
  return ::cuda_host::half_values()[bits & 0xffffu];
}
template <>
inline float element_to_float<__nv_bfloat16>(std::uint32_t bits) {
  return __uint_as_float(bits << 16);
}

// Products are exact in float; each lane sums its four results in double, as the hardware keeps extra bits within one instruction.
template <typename T>
void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  const std::uint32_t own[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto& all = ::cuda_host::exchange(::cuda_host::Collective::kMma, 0xffffffffu, own, 6);
  const int group = ::cuda_host::lane() / 4;
  const int pair = ::cuda_host::lane() % 4;
  double sum[4] = {c[0], c[1], c[2], c[3]};
  for (int k = 0; k < 16; ++k) {
    const int holder = k % 8 / 2;  // lane of the quad that holds column k of a, row k of b
    const int shift = k % 2 * 16;
    const int high = k / 8;
    float left[2];
    float right[2];
    for (int i = 0; i < 2; ++i) {
      left[i] = element_to_float<T>(all[group * 4 + holder][i + 2 * high] >> shift & 0xffffu);        // rows group, group + 8
      right[i] = element_to_float<T>(all[(2 * pair + i) * 4 + holder][4 + high] >> shift & 0xffffu);  // columns 2 pair, + 1
    }
    for (int i = 0; i < 4; ++i) sum[i] += static_cast<double>(left[i / 2] * right[i % 2]);
  }
  for (int i = 0; i < 4; ++i) c[i] = static_cast<float>(sum[i]);
}

inline float exp2_fast(float x) { return exp2f(x); }
inline float sqrt_fast(float x) { return x < 1.17549435e-38f ? (x < 0.0f ? NAN : x * 0.0f) : sqrtf(x); }

template <typename T>
T load_coherent(const T* pointer) {
  return *pointer;
}

template <typename... Parameters>
cudaError_t load(void (*kernel)(Parameters...)) {
  ::cuda_host::note_loaded(reinterpret_cast<const void*>(kernel));
  return cudaSuccess;
}
template <typename... Parameters>
cudaError_t prefer_shared_memory(void (*)(Parameters...)) {
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, std::size_t shared_bytes, cudaStream_t,
                   std::common_type_t<Parameters>... arguments) {
  if (blocks == 0 || threads == 0 || threads > 1024) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 99 * 1024) return cudaErrorInvalidValue;  // compute capability 8.6, 8.9, 12.0
  ::cuda_host::check_loaded(reinterpret_cast<const void*>(kernel));
  ::cuda_host::Translated translated = nullptr;
  switch (::cuda_host::program(reinterpret_cast<const void*>(kernel), threads, shared_bytes, &translated)) {
    case ::cuda_host::Program::kMissing:
      return cudaErrorInvalidDeviceFunction;
    case ::cuda_host::Program::kSource:
      ::cuda_host::run_grid(blocks, threads, shared_bytes, [=] { kernel(arguments...); });
      break;
    case ::cuda_host::Program::kTranslated:
      const unsigned char* const pointers[] = {reinterpret_cast<const unsigned char*>(&arguments)...};
      ::cuda_host::run_grid(blocks, threads, shared_bytes, [&] { translated(pointers); });
  }
  return cudaSuccess;
}

}  // namespace mra::cuda
