// Keys and values in float16, for MRA's CPU operator with AVX512-FP16. Included by mra2_attention_cpu_kernels.cc inside its
// namespaces.
//
// They are brought into float16's range by powers of two, a block at a time: no input that float32 can take overflows, and what
// gets lost of small ones is 2^-20 of the block's largest.

using Half = _Float16;
using HalfVec = Half __attribute__((vector_size(64)));
constexpr int kHalfLanes = 32;
static_assert(kHalfLanes == kB, "a vector holds one element of each query of a block");
constexpr int kChunk = kHalfLanes;                             // elements of a row that lie together: a vector, and a cache line
constexpr int kChunkSum = 2;                                   // chunks that are summed up in float16
constexpr int kHalfRows = 16;                                  // of a tile
constexpr float kHalfSmallest = 1.0f / 16, kHalfLargest = 16;  // the largest element of a block, where it is not scaled

MRA_INLINE HalfVec load(const Half* p) {
  HalfVec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
MRA_INLINE HalfVec to_half(Vec low, Vec high) {
  const __m256i l = (__m256i)_mm512_cvtxps_ph((__m512)low), h = (__m256i)_mm512_cvtxps_ph((__m512)high);
  return (HalfVec)_mm512_inserti64x4(_mm512_castsi256_si512(l), h, 1);
}
MRA_INLINE Vec low_floats(HalfVec v) { return (Vec)_mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256((__m512i)v)); }
MRA_INLINE Vec high_floats(HalfVec v) { return (Vec)_mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64((__m512i)v, 1)); }

// A power of two by which numbers up to `largest` are to be divided; 1 where they need not.
float choose_divisor(float largest) {
  if (largest == 0.0f || (largest >= kHalfSmallest && largest <= kHalfLargest)) return 1.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &largest, 4);
  std::uint32_t exponent = bits >> 23;
  exponent = (exponent < 4 ? 4 : exponent > 252 ? 252 : exponent) - 2;
  bits = exponent << 23;
  float divisor;
  std::memcpy(&divisor, &bits, 4);
  return divisor;
}

std::int64_t count_chunks(std::int64_t dim) { return (dim + kChunk - 1) / kChunk; }

// Where the rows of a block lie, and what they are of.
struct HalfSource {
  const Mra2CpuPlan* plan;
  std::int64_t origin;  // the element of the first head at the block's first token
  std::int64_t block;
  int tokens[kB];

  HalfSource(const Mra2CpuPlan& of, std::int64_t example, std::int64_t begin, std::int64_t of_block, std::uint32_t bits)
      : plan(&of),
        origin((example * of.params.seq_len + of_block * kB) * of.params.hidden_size + begin * of.head_dim),
        block(of_block) {
    list_bits(bits, tokens);
  }
};

// A copier of pool_tensor: to [heads, nb, chunks, 32, 32], with what each head's block was divided by.
template <typename T>
class HalfCopy {
 public:
  static constexpr bool kHeads = true;

  HalfCopy(const HalfSource& source, const void* tensor, std::uint32_t* packed, float* scales, std::int64_t slot)
      : source_(source),
        dim_(source.plan->head_dim),
        size_(count_chunks(dim_) * kB * kChunk),
        step_(source.plan->nb * size_),
        rows_(static_cast<const T*>(tensor) + source.origin),
        halves_(reinterpret_cast<Half*>(packed) + slot * step_ + source.block * size_),
        scales_(scales + slot * source.plan->nb + source.block) {}

  MRA_INLINE void copy(std::int64_t j, int row, std::int64_t i, Float8 part) const {
    const __m128i halves = _mm256_cvtps_ph((__m256)part, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(place(j, row, i), &halves, sizeof(halves));
  }

  void finish(std::int64_t j, int n) const {
    // Keys are multiplied kHalfRows at a time: those that fill them up give 0, and so do the dimensions that fill up a chunk.
    const int filled = (n + kHalfRows - 1) / kHalfRows * kHalfRows;
    for (std::int64_t d = 0; d < dim_; d += kChunk)
      std::memset(place(j, n, d), 0, static_cast<std::size_t>((filled - n) * kChunk) * sizeof(Half));
    for (int row = 0; dim_ % kChunk != 0 && row < n; ++row)
      std::memset(place(j, row, dim_), 0, static_cast<std::size_t>(kChunk - dim_ % kChunk) * sizeof(Half));
    scales_[j * source_.plan->nb] = 1.0f;
    if (n == 0 || fits(j, filled)) return;
    Float8 largest = {};
    for_rows(j, n, [&](int, std::int64_t, Float8 part) {
      const Float8 magnitude = (Float8)((UInt8)part & 0x7fffffff);
      largest = magnitude > largest ? magnitude : largest;
    });
    float most = 0.0f;
    for (int i = 0; i < 8; ++i) most = largest[i] > most ? largest[i] : most;
    const float divisor = choose_divisor(most), factor = 1.0f / divisor;
    for_rows(j, n, [&](int row, std::int64_t d, Float8 part) { copy(j, row, d, part * factor); });
    scales_[j * source_.plan->nb] = divisor;
  }

 private:
  MRA_INLINE Half* place(std::int64_t j, int row, std::int64_t i) const {
    return halves_ + j * step_ + (i / kChunk * kB + row) * kChunk + i % kChunk;
  }

  template <typename Visit>
  void for_rows(std::int64_t j, int n, const Visit& visit) const {
    for (int row = 0; row < n; ++row) {
      const T* from = rows_ + source_.tokens[row] * source_.plan->params.hidden_size + j * dim_;
      for (std::int64_t d = 0; d < dim_; d += 8) visit(row, d, load8(from + d));
    }
  }

  // Whether the block needs no divisor. As integers, the magnitudes of halves are in their order, infinity and NaN above all.
  bool fits(std::int64_t j, int rows) const {
    using Bits = std::uint16_t __attribute__((vector_size(64)));
    Bits largest = {};
    for (std::int64_t d = 0; d < dim_; d += kChunk)
      for (int row = 0; row < rows; ++row) {
        const Bits magnitude = (Bits)load(place(j, row, d)) & 0x7fff;
        largest = magnitude > largest ? magnitude : largest;
      }
    const Half smallest = kHalfSmallest, most = kHalfLargest;
    std::uint16_t low, high, found = 0;
    std::memcpy(&low, &smallest, 2);
    std::memcpy(&high, &most, 2);
    for (int i = 0; i < kHalfLanes; ++i) found = largest[i] > found ? largest[i] : found;
    return found >= low && found <= high;
  }

  const HalfSource& source_;
  std::int64_t dim_, size_, step_;
  const T* rows_;  // of the first head
  Half* halves_;
  float* scales_;
};
