// ptx_runtime.h on the shim, and how a test runs a translated kernel.
#include "ptx_runtime.h"

#include <cfenv>
#include <cmath>

#include "common/cuda/device.cuh"

namespace ptx {

namespace host = ::cuda_host;

u32 thread_index() { return host::g_context->thread.x; }
u32 block_index() { return host::g_context->block.x; }
u32 block_size() { return host::g_context->block_dim.x; }
u32 grid_size() { return host::g_context->grid_dim.x; }
u32 lane_index() { return static_cast<u32>(host::lane()); }

Shared shared_memory() { return {host::shared_memory(), static_cast<u32>(host::shared_bytes())}; }
void fail_shared(u32 address, u32 bytes, u32 there) {
  host::fail("thread %u: %u bytes at %u of shared memory, which has %u; or misaligned", thread_index(), bytes, address, there);
}
void fail_alignment(u64 address, u32 bytes) {
  host::fail("thread %u: %u bytes at the misaligned address %llx", thread_index(), bytes, static_cast<unsigned long long>(address));
}
void fail_division() { host::fail("thread %u: division by 0", thread_index()); }

u32 atomic_add(unsigned char* address, u32 value) { return atomicAdd(reinterpret_cast<u32*>(address), value); }

void barrier() { __syncthreads(); }
void warp_barrier(u32 lanes) { __syncwarp(lanes); }
void fence() { __threadfence(); }
u32 ballot(u32 lanes, bool predicate) { return __ballot_sync(lanes, predicate); }
u32 match_any(u32 lanes, u32 value) { return __match_any_sync(lanes, value); }
u32 shuffle(u32 lanes, u32 value, s32 source) { return cuda_host_shuffle(lanes, value, source); }
void fail_clamp(u32 clamp, u32 known) { host::fail("thread %u: a shuffle with clamp %u, not %u", thread_index(), clamp, known); }

void copy_async(unsigned char* to, const unsigned char* from, u32 bytes) {
  if (bytes != 0 && bytes != 16) host::fail("cp.async of %u bytes", bytes);
  mra::cuda::copy_async_16(to, from, bytes == 16);
}
void copy_commit() { mra::cuda::copy_async_commit(); }
void copy_wait(u32 pending) { host::finish_copies(pending); }

void load_matrix(u32 (&out)[4], const unsigned char* row, bool transposed) { mra::cuda::load_matrix(out, row, transposed); }
void mma_f16(f32 (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) { mra::cuda::mma_m16n8k16<__half>(sum, a, b[0], b[1]); }
void mma_bf16(f32 (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) { mra::cuda::mma_m16n8k16<__nv_bfloat16>(sum, a, b[0], b[1]); }

u32 count_bits(u32 a) { return static_cast<u32>(__popc(a)); }
u32 leading_zeros(u32 a) { return static_cast<u32>(__clz(static_cast<int>(a))); }
u32 reverse_bits(u32 a) {
  u32 reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (a >> i & 1u) << (31 - i);
  return reversed;
}
u32 highest_bit(u32 a) { return a == 0 ? 0xffffffffu : 31 - leading_zeros(a); }
u32 extract_bits(u32 a, u32 position, u32 length) {
  u32 field = 0;
  for (u32 i = 0; i < 32 && i < (length & 255); ++i)
    if ((position & 255) + i < 32) field |= (a >> ((position & 255) + i) & 1u) << i;
  return field;
}
s32 extract_bits(s32 a, u32 position, u32 length) {
  position &= 255;
  length &= 255;
  u32 field = extract_bits(static_cast<u32>(a), position, length);
  if (length == 0) return 0;
  const u32 last = position + length - 1;
  const bool negative = (static_cast<u32>(a) >> (last < 31 ? last : 31) & 1u) != 0;
  // Above what there is of the field stands its sign.
  const u32 there = position > 31 ? 0 : (length < 32 - position ? length : 32 - position);
  if (negative) field |= there < 32 ? 0xffffffffu << there : 0u;
  return static_cast<s32>(field);
}
u32 permute_bytes(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 choice = selector >> (4 * i);
    u32 byte = static_cast<u32>(bytes >> (8 * (choice & 7))) & 0xffu;
    if ((choice & 8) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;  // the byte's sign, eight times
    result |= byte << (8 * i);
  }
  return result;
}
u32 logic3(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  for (u32 i = 0; i < 8; ++i)
    if ((table >> i & 1u) != 0) result |= ((i & 4) != 0 ? a : ~a) & ((i & 2) != 0 ? b : ~b) & ((i & 1) != 0 ? c : ~c);
  return result;
}
u32 funnel_left(u32 low, u32 high, u32 by) { return static_cast<u32>(((static_cast<u64>(high) << 32 | low) << (by & 31)) >> 32); }
u32 funnel_right(u32 low, u32 high, u32 by) { return static_cast<u32>((static_cast<u64>(high) << 32 | low) >> (by & 31)); }

f32 minimum(f32 a, f32 b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return as_float(as_bits(a) | as_bits(b));
  return a < b ? a : b;
}
f32 maximum(f32 a, f32 b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return as_float(as_bits(a) & as_bits(b));
  return a > b ? a : b;
}
f32 saturate(f32 a) { return a != a || a <= 0.0f ? 0.0f : a > 1.0f ? 1.0f : a; }
f32 fma_down(f32 a, f32 b, f32 c) {
  const volatile f32 x = a, y = b, z = c;  // so that the product is not computed before the mode is set
  const int mode = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  const volatile f32 result = std::fma(x, y, z);
  std::fesetround(mode);
  return result;
}
namespace {
f32 flush(f32 a) { return std::fabs(a) < 0x1p-126f ? std::copysign(0.0f, a) : a; }
}  // namespace
f32 exp2_approx_ftz(f32 a) { return flush(std::exp2(flush(a))); }
f32 sqrt_approx_ftz(f32 a) { return std::sqrt(flush(a)); }
f32 round_even(f32 a) { return std::nearbyint(a); }
f32 f16_to_f32(u16 a) { return host::half_values()[a]; }
f32 bf16_to_f32(u16 a) { return as_float(static_cast<u32>(a) << 16); }
u16 f32_to_f16(f32 a) { return __half_as_ushort(__float2half_rn(a)); }
u16 f32_to_bf16(f32 a) { return __bfloat16_as_ushort(__float2bfloat16_rn(a)); }
s32 f32_to_s32(f32 a) {
  if (a != a) return 0;
  return a >= 0x1p31f ? 0x7fffffff : a < -0x1p31f ? -0x7fffffff - 1 : static_cast<s32>(a);
}
u32 f32_to_u32(f32 a) {
  if (!(a > 0.0f)) return 0;
  return a >= 0x1p32f ? 0xffffffffu : static_cast<u32>(a);
}

}  // namespace ptx

// Runs a translated kernel on one thread block, or several.
extern "C" void mra_ptx_run(cuda_host::Translated kernel, unsigned blocks, unsigned threads, std::uint64_t shared_bytes,
                            const unsigned char* const* parameters) {
  cuda_host::run_grid(blocks, threads, shared_bytes, [=] { kernel(parameters); });
}

// In place of a kernel of which only the launch is looked at.
extern "C" void mra_ptx_nothing(const unsigned char* const*) {}
