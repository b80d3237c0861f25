// What translated PTX is made of: the instructions that are no C++ operator, and checked addresses.
//
// It includes nothing that takes a compiler long, since every kernel is a file of its own; ptx_runtime.cc has what needs the shim.
#pragma once

#include <cstdint>

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using f32 = float;

inline f32 as_float(u32 bits) { return __builtin_bit_cast(f32, bits); }
inline u32 as_bits(f32 x) { return __builtin_bit_cast(u32, x); }

// Of the running thread.
u32 thread_index();
u32 block_index();
u32 block_size();
u32 grid_size();
u32 lane_index();

// Memory. A shared address counts from the start of the dynamic shared memory; every other one is the host's.
struct Shared {
  unsigned char* base;
  u32 bytes;
};
Shared shared_memory();
[[noreturn]] void fail_shared(u32 address, u32 bytes, u32 there);
[[noreturn]] void fail_alignment(u64 address, u32 bytes);

inline unsigned char* at_shared(const Shared& shared, u32 address, u32 bytes) {
  if (address % bytes != 0 || address > shared.bytes || bytes > shared.bytes - address) fail_shared(address, bytes, shared.bytes);
  return shared.base + address;
}
inline unsigned char* at(u64 address, u32 bytes) {
  if (address % bytes != 0) fail_alignment(address, bytes);
  return reinterpret_cast<unsigned char*>(address);
}

template <typename T>
T load(const unsigned char* from) {
  using Any __attribute__((may_alias)) = T;
  return *reinterpret_cast<const Any*>(from);
}
template <typename T>
void store(unsigned char* to, T value) {
  using Any __attribute__((may_alias)) = T;
  *reinterpret_cast<Any*>(to) = value;
}
u32 atomic_add(unsigned char* address, u32 value);

// Threads of a block and of a warp.
void barrier();
void warp_barrier(u32 lanes);
void fence();
u32 ballot(u32 lanes, bool predicate);
u32 match_any(u32 lanes, u32 value);
// What lane `source` gives, or this lane's own where there is no such lane in the warp.
u32 shuffle(u32 lanes, u32 value, s32 source);
// Shuffles within parts of a warp are not known.
[[noreturn]] void fail_clamp(u32 clamp, u32 known);
inline void check_clamp(u32 clamp, u32 known) {
  if (clamp != known) fail_clamp(clamp, known);
}

// Asynchronous copies of 16 bytes, of which `bytes` are read and the others 0.
void copy_async(unsigned char* to, const unsigned char* from, u32 bytes);
void copy_commit();
void copy_wait(u32 pending);

// Matrices, with the layouts of the PTX manual.
void load_matrix(u32 (&out)[4], const unsigned char* row, bool transposed);
void mma_f16(f32 (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]);
void mma_bf16(f32 (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]);

// Integers.
[[noreturn]] void fail_division();
template <typename T>
T divide(T a, T b) {
  if (b == 0) fail_division();
  return static_cast<T>(a / b);
}
template <typename T>
T remainder(T a, T b) {
  if (b == 0) fail_division();
  return static_cast<T>(a % b);
}
inline u32 multiply_high(u32 a, u32 b) { return static_cast<u32>(static_cast<u64>(a) * b >> 32); }
inline s32 multiply_high(s32 a, s32 b) { return static_cast<s32>(static_cast<s64>(a) * b >> 32); }
inline u64 multiply_high(u64 a, u64 b) { return static_cast<u64>(static_cast<unsigned __int128>(a) * b >> 64); }
inline s64 multiply_high(s64 a, s64 b) { return static_cast<s64>(static_cast<__int128>(a) * b >> 64); }
template <typename T>
T shift_left(T a, u32 by) {
  return by >= sizeof(T) * 8 ? T{0} : static_cast<T>(a << by);
}
template <typename T>
T shift_right(T a, u32 by) {
  if (by >= sizeof(T) * 8) return static_cast<T>(a < 0 ? -1 : 0);
  return static_cast<T>(a >> by);
}
u32 count_bits(u32 a);
u32 leading_zeros(u32 a);
u32 reverse_bits(u32 a);
u32 highest_bit(u32 a);  // its number, or all ones
template <typename T>
T insert_bits(T field, T into, u32 position, u32 length) {
  position &= 255;
  length &= 255;
  T mask = 0;
  for (u32 i = position; i < sizeof(T) * 8 && i < position + length; ++i) mask |= T{1} << i;
  return (into & ~mask) | (shift_left(field, position) & mask);
}
u32 extract_bits(u32 a, u32 position, u32 length);
s32 extract_bits(s32 a, u32 position, u32 length);
u32 permute_bytes(u32 a, u32 b, u32 selector);
u32 logic3(u32 a, u32 b, u32 c, u32 table);
u32 funnel_left(u32 low, u32 high, u32 by);   // by modulo 32
u32 funnel_right(u32 low, u32 high, u32 by);  // by modulo 32

// Floats. Without .ftz numbers below the normal ones are kept.
f32 minimum(f32 a, f32 b);  // the other one where one is NaN; -0 is less than +0
f32 maximum(f32 a, f32 b);
f32 saturate(f32 a);                // to [0, 1], NaN to 0
f32 fma_down(f32 a, f32 b, f32 c);  // rounded towards minus infinity
f32 exp2_approx_ftz(f32 a);
f32 sqrt_approx_ftz(f32 a);
f32 round_even(f32 a);
f32 f16_to_f32(u16 a);
f32 bf16_to_f32(u16 a);
u16 f32_to_f16(f32 a);
u16 f32_to_bf16(f32 a);
s32 f32_to_s32(f32 a);  // towards 0; out of range to the nearest, NaN to 0
u32 f32_to_u32(f32 a);

}  // namespace ptx
