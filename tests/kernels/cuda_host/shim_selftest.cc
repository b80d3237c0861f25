// What the shim itself must do: fragments as the PTX manual lays them out, and faults that it or a sanitizer must catch.
//
// shim_selftest NAME runs one of them; "mma", "ldmatrix" and "last_block" print OK, the others are planted faults and must not.
#include <cstdio>
#include <cstring>
#include <string>

#include "common/cuda/device.cuh"

namespace {

using namespace mra::cuda;

constexpr unsigned kAll = 0xffffffffu;

// A warp multiplies a [16, 16] and b [16, 8] and adds c [16, 8].
template <typename T>
void mma_kernel(const std::uint16_t* a, const std::uint16_t* b, float* c) {
  const int lane = static_cast<int>(threadIdx.x);
  const int group = lane / 4;
  const int pair = lane % 4 * 2;
  const auto two = [](std::uint16_t low, std::uint16_t high) { return static_cast<std::uint32_t>(high) << 16 | low; };
  const auto left = [&](int row, int column) { return two(a[row * 16 + column], a[row * 16 + column + 1]); };
  const std::uint32_t fragments[4] = {left(group, pair), left(group + 8, pair), left(group, pair + 8), left(group + 8, pair + 8)};
  const std::uint32_t b0 = two(b[pair * 8 + group], b[(pair + 1) * 8 + group]);
  const std::uint32_t b1 = two(b[(pair + 8) * 8 + group], b[(pair + 9) * 8 + group]);
  float* own[4] = {&c[group * 8 + pair], &c[group * 8 + pair + 1], &c[(group + 8) * 8 + pair], &c[(group + 8) * 8 + pair + 1]};
  float sum[4] = {*own[0], *own[1], *own[2], *own[3]};
  mma_m16n8k16<T>(sum, fragments, b0, b1);
  for (int i = 0; i < 4; ++i) *own[i] = sum[i];
}

template <typename T>
bool check_mma(std::uint16_t (*encode)(int)) {
  std::uint16_t a[256];
  std::uint16_t b[128];
  float c[128];
  for (int i = 0; i < 256; ++i) a[i] = encode(i * 7 % 23 - 11);
  for (int i = 0; i < 128; ++i) b[i] = encode(i * 5 % 19 - 9);
  for (int i = 0; i < 128; ++i) c[i] = static_cast<float>(i % 13);
  launch(mma_kernel<T>, 1, 32, 0, nullptr, a, b, c);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int sum = (row * 8 + column) % 13;
      for (int k = 0; k < 16; ++k) sum += ((row * 16 + k) * 7 % 23 - 11) * ((k * 8 + column) * 5 % 19 - 9);
      if (c[row * 8 + column] != static_cast<float>(sum)) return false;
    }
  return true;
}

void ldmatrix_kernel(int* wrong) {
  auto* rows = reinterpret_cast<std::uint16_t*>(dynamic_shared());  // [32, 8], element = 8 * row + column
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) rows[i] = static_cast<std::uint16_t>(i);
  __syncwarp();
  std::uint32_t straight[4];
  std::uint32_t turned[4];
  load_matrix_x4(straight, rows + lane * 8);
  load_matrix_x4_transposed(turned, rows + lane * 8);
  for (int matrix = 0; matrix < 4; ++matrix) {
    const std::uint32_t low = static_cast<std::uint32_t>((matrix * 8 + lane / 4) * 8 + lane % 4 * 2);
    const std::uint32_t first = static_cast<std::uint32_t>((matrix * 8 + lane % 4 * 2) * 8 + lane / 4);
    if (straight[matrix] != (low | (low + 1) << 16) || turned[matrix] != (first | (first + 8) << 16))
      atomicAdd(reinterpret_cast<std::uint32_t*>(wrong), 1u);
  }
}

void missing_barrier_kernel(float* out) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared());
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[(threadIdx.x + 33) % 64];
}

void missing_warp_sync_kernel(float* out) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared());
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  __ballot_sync(kAll, true);  // no memory ordering
  out[threadIdx.x] = shared[(threadIdx.x + 1) % 32];
}

void block_race_kernel(float* out) { out[0] = static_cast<float>(blockIdx.x + threadIdx.x); }

// The second block to arrive reads what the first wrote; kFence is what makes that right.
template <bool kFence>
void last_block_kernel(float* out) {
  __syncthreads();
  out[1 + blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
  if (kFence) __threadfence();
  __syncthreads();
  auto* arrivals = reinterpret_cast<std::uint32_t*>(out);
  auto* last = reinterpret_cast<std::uint32_t*>(dynamic_shared());
  if (threadIdx.x == 0) *last = atomicAdd(arrivals, 1u) == 1u;
  __syncthreads();
  if (*last == 0) return;
  if (kFence) __threadfence();
  float sum = 0.0f;
  for (unsigned i = 0; i < 2 * blockDim.x; ++i) sum += out[1 + i];
  if (sum != 2.0f * static_cast<float>(blockDim.x)) cuda_host::fail("the sum is %g", static_cast<double>(sum));
}

void shared_overrun_kernel(float* out) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared());
  shared[threadIdx.x + 1] = 1.0f;  // 64 floats were asked for
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

void global_overrun_kernel(float* out) { out[threadIdx.x + 1] = 1.0f; }

void divergent_collective_kernel(float* out) {
  if (threadIdx.x < 16)
    out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
  else
    __syncwarp();
}

void divergent_barrier_kernel(float* out) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  out[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1);
}

void copy_without_wait_kernel(float* out) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared());
  copy_async_16(shared + threadIdx.x * 4, out, true);
  copy_async_commit();
}

void misaligned_copy_kernel(float* out) {
  copy_async_16(dynamic_shared() + 8, out, true);
  copy_async_commit();
  copy_async_wait<0>();
}

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count == 2 ? arguments[1] : "";
  auto* out = static_cast<float*>(std::aligned_alloc(16, 64 * sizeof(float)));
  std::memset(out, 0, 64 * sizeof(float));
  bool ok = true;
  if (name == "mma") {
    ok = check_mma<__half>([](int i) { return __half_as_ushort(__int2half_rn(i)); }) &&
         check_mma<__nv_bfloat16>([](int i) { return __bfloat16_as_ushort(__int2bfloat16_rn(i)); });
  } else if (name == "ldmatrix") {
    int wrong = 0;
    launch(ldmatrix_kernel, 1, 32, 512, nullptr, &wrong);
    ok = wrong == 0;
  } else if (name == "missing_barrier") {
    launch(missing_barrier_kernel, 1, 64, 256, nullptr, out);
  } else if (name == "missing_warp_sync") {
    launch(missing_warp_sync_kernel, 1, 32, 128, nullptr, out);
  } else if (name == "block_race") {
    launch(block_race_kernel, 2, 1, 0, nullptr, out);
  } else if (name == "last_block") {
    launch(last_block_kernel<true>, 2, 16, 16, nullptr, out);
  } else if (name == "last_block_without_fence") {
    launch(last_block_kernel<false>, 2, 16, 16, nullptr, out);
  } else if (name == "shared_overrun") {
    launch(shared_overrun_kernel, 1, 64, 256, nullptr, out);
  } else if (name == "global_overrun") {
    launch(global_overrun_kernel, 1, 64, 0, nullptr, out);
  } else if (name == "divergent_collective") {
    launch(divergent_collective_kernel, 1, 32, 0, nullptr, out);
  } else if (name == "divergent_barrier") {
    launch(divergent_barrier_kernel, 1, 32, 0, nullptr, out);
  } else if (name == "copy_without_wait") {
    launch(copy_without_wait_kernel, 1, 32, 512, nullptr, out);
  } else if (name == "misaligned_copy") {
    launch(misaligned_copy_kernel, 1, 1, 64, nullptr, out);
  } else {
    std::fprintf(stderr, "no test '%s'\n", name.c_str());
    return 3;
  }
  std::free(out);
  std::puts(ok ? "OK" : "WRONG");
  return ok ? 0 : 1;
}
