// Vectors and element types that the CPU kernels are made of, and the call of their tasks.
//
// To be included by a source that is compiled once per instruction set, inside its namespace there (mra::MRA_CPU_NAMESPACE
// and an unnamed one): nothing here may have external linkage. An inline function compiled for AVX-512 that the linker shared
// with the rest of the program would end it on a machine without AVX-512. <cstring> and, on x86, <immintrin.h> are included before.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Vec = float __attribute__((vector_size(kLanes * 4)));
using UIntVec = std::uint32_t __attribute__((vector_size(kLanes * 4)));
using IntVec = std::int32_t __attribute__((vector_size(kLanes * 4)));
using VecUnaligned = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using Vec4 = float __attribute__((vector_size(16), aligned(4), may_alias));
// Rows are read and written eight elements at a time, whatever the vector: head_dim is a multiple of 8.
using Float8 = float __attribute__((vector_size(32)));
using Float8Unaligned = float __attribute__((vector_size(32), aligned(4), may_alias));
using UInt8 = std::uint32_t __attribute__((vector_size(32)));
using Half8 = std::uint16_t __attribute__((vector_size(16)));

#define MRA_INLINE inline __attribute__((always_inline))

MRA_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
MRA_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }
MRA_INLINE Vec broadcast(float x) { return x - Vec{}; }  // subtracting +0 changes nothing, and the compiler knows

MRA_INLINE Vec multiply_add(Vec sum, Vec a, Vec b) { return sum + a * b; }

// The larger; b where either is NaN.
MRA_INLINE Vec vmax(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);  // GCC 12 warns of the plain form's own header
#elif defined(__AVX__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

// Square root of x >= 1e-37, relative error below 2e-7; NaN for NaN.
MRA_INLINE Vec fast_sqrt(Vec x) {
#if defined(__AVX512F__)
  const Vec r = (Vec)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)x);
  const Vec s = x * r;
  return s + s * (0.5f - 0.5f * s * r);
#elif defined(__AVX__)
  const Vec r = (Vec)_mm256_rsqrt_ps((__m256)x);
  const Vec s = x * r;
  return s + s * (0.5f - 0.5f * s * r);
#elif defined(__SSE2__)
  return (Vec)_mm_sqrt_ps((__m128)x);
#else
  Vec s;
  for (int i = 0; i < kLanes; ++i) s[i] = __builtin_sqrtf(x[i]);
  return s;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Element types. Rows hold head_dim elements, a multiple of 8.

struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

MRA_INLINE Float8 load8(const float* from) { return *reinterpret_cast<const Float8Unaligned*>(from); }
MRA_INLINE void store8(float* to, Float8 values) { *reinterpret_cast<Float8Unaligned*>(to) = values; }

MRA_INLINE Float8 load8(const BFloat16* from) {
  Half8 half;
  std::memcpy(&half, from, 16);
  return (Float8)(__builtin_convertvector(half, UInt8) << 16);
}
MRA_INLINE void store8(BFloat16* to, Float8 values) {
  const UInt8 bits = (UInt8)values;
  const UInt8 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  const UInt8 quiet_nan = (bits >> 16) | 0x40;
  const UInt8 result = (bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded;
  const Half8 half = __builtin_convertvector(result, Half8);
  std::memcpy(to, &half, 16);
}

#if defined(__F16C__)
MRA_INLINE Float8 load8(const Float16* from) {
  return (Float8)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
MRA_INLINE void store8(Float16* to, Float8 values) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT));
}
#else
// The vectors' selections compute both sides: neither may trap or depend on the other.
MRA_INLINE Float8 load8(const Float16* from) {
  Half8 raw;
  std::memcpy(&raw, from, 16);
  const UInt8 half = __builtin_convertvector(raw, UInt8);
  const UInt8 magnitude = half & 0x7fff;
  // Exponents move from bias 15 to 127; that of infinity and NaN (31) to 255.
  const UInt8 normal = (magnitude << 13) + (magnitude >= 0x7c00 ? UInt8{} + (224u << 23) : UInt8{} + (112u << 23));
  // A subnormal is an integer of 2^-24 each: put behind 2^-14's exponent, it is that much more than 2^-14.
  const UInt8 offset = UInt8{} + (113u << 23);
  const Float8 subnormal = (Float8)(offset + (magnitude << 13)) - (Float8)offset;
  const UInt8 bits = magnitude < 0x400 ? (UInt8)subnormal : normal;
  return (Float8)(bits | (half & 0x8000) << 16);
}
MRA_INLINE void store8(Float16* to, Float8 values) {
  const UInt8 bits = (UInt8)values;
  const UInt8 magnitude = bits & 0x7fffffff;
  const UInt8 normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;  // to nearest, ties to even
  // Below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the end of the mantissa.
  const UInt8 subnormal = (UInt8)((Float8)(magnitude < 0x38800000 ? magnitude : UInt8{}) + 0.5f) - 0x3f000000;
  const UInt8 quiet_nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
  UInt8 half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? UInt8{} + 0x7c00 : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000 ? quiet_nan : half;
  const Half8 result = __builtin_convertvector(half | (bits >> 16 & 0x8000), Half8);
  std::memcpy(to, &result, 16);
}
#endif

#if defined(__AVX512BF16__)
// Two numbers of type bfloat16 whose products with another two are summed up at once; the first is in the lower half.
struct Pair {
  std::uint32_t bits;
};
using Half32 = std::uint16_t __attribute__((vector_size(64)));
using UIntVecUnaligned = std::uint32_t __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

MRA_INLINE UIntVec load(const Pair* p) { return *reinterpret_cast<const UIntVecUnaligned*>(p); }
MRA_INLINE void store(Pair* p, UIntVec v) { *reinterpret_cast<UIntVecUnaligned*>(p) = v; }
MRA_INLINE UIntVec broadcast(Pair x) { return x.bits - UIntVec{}; }
MRA_INLINE Vec multiply_add(Vec sum, UIntVec a, UIntVec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)a, (__m512bh)(__m512i)b);
}

// The numbers of `first` and `second` in one Pair each.
MRA_INLINE UIntVec pair_up(Vec first, Vec second) {
  const auto halves = (Half32)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return (UIntVec)__builtin_shufflevector(halves, halves, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10,
                                          26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
MRA_INLINE void store_pairs(Pair* to, Float8 first, Float8 second) {
  const auto low = (Half8)_mm256_cvtneps_pbh((__m256)first), high = (Half8)_mm256_cvtneps_pbh((__m256)second);
  const UInt8 pairs = __builtin_convertvector(low, UInt8) | __builtin_convertvector(high, UInt8) << 16;
  std::memcpy(static_cast<void*>(to), &pairs, sizeof(pairs));
}
// Eight numbers, the first two in the first Pair.
MRA_INLINE void store_pairs(Pair* to, Float8 values) {
  const auto rounded = (Half8)_mm256_cvtneps_pbh((__m256)values);
  std::memcpy(static_cast<void*>(to), &rounded, sizeof(rounded));
}
#endif

template <typename T>
MRA_INLINE void load_row(float* to, const T* from, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; d += 8) store8(to + d, load8(from + d));
}

// to [dim, Columns] = from [n, dim] transposed and scaled; the columns from n on are 0. dim and Columns are multiples of 4.
template <int Columns>
void transpose_rows(float* to, const float* from, int n, std::int64_t dim, float scale) {
  for (int row = 0; row < Columns; row += 4) {
    for (std::int64_t d = 0; d < dim; d += 4) {
      Vec4 r[4];
      for (int i = 0; i < 4; ++i) r[i] = row + i < n ? *reinterpret_cast<const Vec4*>(from + (row + i) * dim + d) * scale : Vec4{};
      const Vec4 low01 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), high01 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
      const Vec4 low23 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), high23 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
      float* out = to + d * Columns + row;
      *reinterpret_cast<Vec4*>(out) = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
      *reinterpret_cast<Vec4*>(out + Columns) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
      *reinterpret_cast<Vec4*>(out + 2 * Columns) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
      *reinterpret_cast<Vec4*>(out + 3 * Columns) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
    }
  }
}

// Calls task(argument, i) for every 0 <= i < count on the plan's threads.
template <typename Plan>
void parallel_for(const Plan& plan, void (*task)(void*, std::size_t), const void* argument, std::int64_t count) {
  void* mutable_argument = const_cast<void*>(argument);  // every task reads it only
  if (plan.parallel_for.run != nullptr && count > 1) {
    plan.parallel_for.run(plan.parallel_for.pool, task, mutable_argument, static_cast<std::size_t>(count));
  } else {
    for (std::int64_t i = 0; i < count; ++i) task(mutable_argument, static_cast<std::size_t>(i));
  }
}
