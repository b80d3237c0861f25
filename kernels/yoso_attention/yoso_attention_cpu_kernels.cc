// YOSO's CPU operator, compiled once per instruction set (MRA_CPU_NAMESPACE names it, the compiler's flags select it).
//
// Everything here has internal linkage and no standard-library template is used; cpu_vector.h says why.
//
//   expectation   pack    per (head, block of positions): keys at unit length, values as float     steps 1-2
//                 attend  per (head, block of queries): cosines, weights, sums, over all keys      steps 2-7
//   lsh           hash    per (head, block of positions): codes of queries and keys; values in slices
//                 sum     per (head, slice of 16 columns): some hash tables at a time, which stay in the cache   step 4
//                 finish  per (head, block of queries)                                             steps 5-7
//
// Padding is left out where rows are packed; what comes after sees tokens alone. Which task computes what depends on the sizes
// alone, and every sum has one order, so that the result does not depend on the threads.
#include <cstring>

#include "yoso_attention/yoso_attention_cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mra {
namespace MRA_CPU_NAMESPACE {
namespace {

#include "common/cpu_vector.h"

// ---------------------------------------------------------------------------------------------------------------------
// The matrix product.

// acc[r][n] += Σ_k a[r * row_step + k * k_step] * b[k * ldb + n * kLanes …]
template <int R, int N>
MRA_INLINE void multiply_tile(const float* a, std::ptrdiff_t row_step, std::ptrdiff_t k_step, const float* b, std::ptrdiff_t ldb,
                              std::int64_t depth, Vec (&acc)[R][N]) {
  const auto add = [&](const float* left_row, const float* right_row) __attribute__((always_inline)) {
    Vec right[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) right[n] = load(right_row + n * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec left = broadcast(left_row[r * row_step]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[r][n] += left * right[n];
    }
  };
  std::int64_t k = 0;
  for (; k + 2 <= depth; k += 2) {
    add(a, b);
    add(a + k_step, b + ldb);
    a += 2 * k_step;
    b += 2 * ldb;
  }
  if (k < depth) add(a, b);
}

// One tile of c += a·b.
template <int R, int N>
MRA_INLINE void add_tile(float* c, std::ptrdiff_t ldc, const float* a, std::ptrdiff_t row_step, std::ptrdiff_t k_step,
                         const float* b, std::ptrdiff_t ldb, std::int64_t depth) {
  Vec acc[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) acc[r][n] = load(c + r * ldc + n * kLanes);
  multiply_tile<R, N>(a, row_step, k_step, b, ldb, depth, acc);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(c + r * ldc + n * kLanes, acc[r][n]);
}

// Register tiles (rows x vectors): as many accumulators as the registers hold beside the operands.
constexpr int kTileVecs = kLanes == 16 ? 4 : 2;

template <int N>
void add_columns(float* c, std::ptrdiff_t ldc, const float* a, std::ptrdiff_t row_step, std::ptrdiff_t k_step, const float* b,
                 std::ptrdiff_t ldb, std::int64_t depth, std::int64_t rows) {
  constexpr int kRows = kLanes == 16 && N <= 2 ? 8 : 4;
  std::int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) add_tile<kRows, N>(c + r * ldc, ldc, a + r * row_step, row_step, k_step, b, ldb, depth);
  for (; r < rows; ++r) add_tile<1, N>(c + r * ldc, ldc, a + r * row_step, row_step, k_step, b, ldb, depth);
}

// c [rows, width] += a·b, where a is [rows, depth] with the given steps and b is [depth, width]. `width` is a multiple of the
// vector.
void add_product(float* c, std::ptrdiff_t ldc, const float* a, std::ptrdiff_t row_step, std::ptrdiff_t k_step, const float* b,
                 std::ptrdiff_t ldb, std::int64_t depth, std::int64_t rows, std::int64_t width) {
  std::int64_t column = 0;
  for (; column + kTileVecs * kLanes <= width; column += kTileVecs * kLanes)
    add_columns<kTileVecs>(c + column, ldc, a, row_step, k_step, b + column, ldb, depth, rows);
  if (kTileVecs > 2 && column + 2 * kLanes <= width) {
    add_columns<2>(c + column, ldc, a, row_step, k_step, b + column, ldb, depth, rows);
    column += 2 * kLanes;
  }
  if (column < width) add_columns<1>(c + column, ldc, a, row_step, k_step, b + column, ldb, depth, rows);
}

// ---------------------------------------------------------------------------------------------------------------------

constexpr int kB = kYosoRows;
constexpr int kQueryVecs = kB / kLanes;
constexpr int kSlice = kYosoSlice;
constexpr int kSliceVecs = kSlice / kLanes;
constexpr int kKeyRows = kLanes == 16 ? 8 : 4;  // keys of a register tile
constexpr int kKeyTile = 128;                   // keys whose weights are in memory at once

// What the tasks of every stage are given: the heads that go through the stages together.
struct Group {
  const YosoCpuPlan* plan;
  std::int64_t first;  // head
  std::int64_t count;
};

// One head's part of one block of positions.
struct Block {
  std::int64_t slot;  // head - group.first: where the head's packed data lie
  std::int64_t head;  // of the example
  std::int64_t example;
  std::int64_t position;  // the first of the block
  std::int64_t row;       // of the first token
  int positions;          // of the block, within the sequence
  int tokens;
  int token[kB];  // their numbers in the block

  // The element of this head at position 0 of the example.
  std::int64_t origin(const YosoAttentionParams& p) const { return example * p.seq_len * p.hidden_size + head * p.head_dim(); }
};

Block get_block(const Group& group, std::size_t task) {
  const YosoCpuPlan& plan = *group.plan;
  Block block;
  const std::int64_t number = static_cast<std::int64_t>(task) % plan.nb;
  block.slot = static_cast<std::int64_t>(task) / plan.nb;
  block.head = (group.first + block.slot) % plan.params.num_heads;
  block.example = (group.first + block.slot) / plan.params.num_heads;
  block.position = number * kB;
  block.row = plan.row_starts[block.example * (plan.nb + 1) + number];
  const std::int64_t left = plan.params.seq_len - block.position;
  block.positions = static_cast<int>(left < kB ? left : kB);
  block.tokens = 0;
  for (std::uint32_t bits = plan.token_bits[block.example * plan.nb + number]; bits != 0; bits &= bits - 1)
    block.token[block.tokens++] = __builtin_ctz(bits);
  return block;
}

std::int64_t count_rows(const YosoCpuPlan& plan, std::int64_t example) {
  return plan.row_starts[example * (plan.nb + 1) + plan.nb];
}

// The block's tokens of one tensor: to [tokens, dim] as float.
template <typename T>
void load_tokens(float* to, const void* tensor, const YosoCpuPlan& plan, const Block& block, std::int64_t step) {
  const T* from = static_cast<const T*>(tensor) + block.origin(plan.params) + block.position * plan.params.hidden_size;
  for (int i = 0; i < block.tokens; ++i) load_row(to + i * step, from + block.token[i] * plan.params.hidden_size, plan.head_dim);
}

// 1 / max(|row|, epsilon)
float inverse_length(const float* row, std::int64_t dim) {
  Float8 sum = {};
  for (std::int64_t d = 0; d < dim; d += 8) {
    const Float8 x = load8(row + d);
    sum += x * x;
  }
  const float length = __builtin_sqrtf(((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7])));
  return 1.0f / (length < kYosoNormEpsilon ? kYosoNormEpsilon : length);  // NaN stays
}

void scale_row(float* row, std::int64_t dim, float factor) {
  for (std::int64_t d = 0; d < dim; d += 8) store8(row + d, load8(row + d) * factor);
}

// ---------------------------------------------------------------------------------------------------------------------
// Steps 5 to 7.

// out[i] += Σ_u weight[u] v[i + u - window / 2] for the block's tokens, `rows` [tokens, step].
template <typename T>
void convolve(const YosoCpuPlan& plan, const Block& block, float* rows, std::int64_t step) {
  const YosoAttentionParams& p = plan.params;
  const std::int64_t window = p.conv_window;
  float weight[kYosoMaxConvWindow + 8];
  const T* given = static_cast<const T*>(p.conv_weight) + block.head * window;
  std::int64_t u = 0;
  for (; u + 8 <= window; u += 8) store8(weight + u, load8(given + u));
  if (u < window) {
    T rest[8] = {};
    std::memcpy(rest, given + u, static_cast<std::size_t>(window - u) * sizeof(T));
    store8(weight + u, load8(rest));
  }
  const T* value = static_cast<const T*>(p.value) + block.origin(p);
  const std::int32_t* mask = p.attention_mask + block.example * p.seq_len;
  alignas(64) float around[(kYosoMaxConvWindow + kB) * 8];  // the values that the window sees, eight columns; 0 at padding
  const std::int64_t first = block.position - window / 2;
  for (std::int64_t d = 0; d < plan.head_dim; d += 8) {
    for (std::int64_t i = 0; i < block.positions + window - 1; ++i) {
      const std::int64_t at = first + i;
      const bool there = at >= 0 && at < p.seq_len && mask[at] != 0;
      store8(around + i * 8, there ? load8(value + at * p.hidden_size + d) : Float8{});
    }
    for (int i = 0; i < block.tokens; ++i) {
      const float* from = around + block.token[i] * 8;
      Float8 even = {}, odd = {};
      std::int64_t w = 0;
      for (; w + 2 <= window; w += 2) {
        even += weight[w] * load8(from + w * 8);
        odd += weight[w + 1] * load8(from + w * 8 + 8);
      }
      if (w < window) even += weight[w] * load8(from + w * 8);
      store8(rows + i * step + d, load8(rows + i * step + d) + (even + odd));
    }
  }
}

// Brings the block's sums, `rows` [tokens, step], to unit length, adds the convolution and writes the context.
template <typename T>
void finish(const YosoCpuPlan& plan, const Block& block, float* rows, std::int64_t step) {
  const std::int64_t dim = plan.head_dim;
  for (int i = 0; i < block.tokens; ++i) scale_row(rows + i * step, dim, inverse_length(rows + i * step, dim));
  if (plan.params.conv_window > 0) convolve<T>(plan, block, rows, step);
  T* context = static_cast<T*>(plan.params.context) + block.origin(plan.params) + block.position * plan.params.hidden_size;
  int next = 0;
  for (int i = 0; i < block.positions; ++i) {
    T* to = context + i * plan.params.hidden_size;
    if (next < block.tokens && block.token[next] == i) {
      for (std::int64_t d = 0; d < dim; d += 8) store8(to + d, load8(rows + next * step + d));
      ++next;
    } else {
      std::memset(static_cast<void*>(to), 0, static_cast<std::size_t>(dim) * sizeof(T));
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Mode expectation.

template <typename T>
void pack_block(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const YosoCpuPlan& plan = *group.plan;
  const Block block = get_block(group, task);
  const std::int64_t dim = plan.head_dim, padded_dim = plan.padded_dim;
  const std::int64_t row = block.slot * plan.padded_rows + block.row;
  float* keys = plan.keys + row * dim;
  float* values = plan.values + row * padded_dim;
  load_tokens<T>(keys, plan.params.key, plan, block, dim);
  load_tokens<T>(values, plan.params.value, plan, block, padded_dim);
  for (int i = 0; i < block.tokens; ++i) {
    scale_row(keys + i * dim, dim, inverse_length(keys + i * dim, dim));
    if (padded_dim != dim)
      std::memset(values + i * padded_dim + dim, 0, static_cast<std::size_t>(padded_dim - dim) * sizeof(float));
  }
  if (block.position + kB >= plan.params.seq_len) {  // the last block fills up the last register tile
    const std::int64_t rows = block.row + block.tokens;
    const std::int64_t more = (rows + kKeyRows - 1) / kKeyRows * kKeyRows - rows;
    std::memset(keys + block.tokens * dim, 0, static_cast<std::size_t>(more * dim) * sizeof(float));
    std::memset(values + block.tokens * padded_dim, 0, static_cast<std::size_t>(more * padded_dim) * sizeof(float));
  }
}

// 1 - acos(c) / pi, absolute error below 3e-7; c is cut at -1 and 1. NaN for NaN.
// With y = 1 - |c|, acos |c| / (pi sqrt(y)) is smooth: a polynomial of degree 6, relative error 1.5e-7.
MRA_INLINE Vec angle_weight(Vec c) {
  const UIntVec sign = (UIntVec)c & 0x80000000u;
  const Vec y = vmax(broadcast(1e-30f), 1.0f - (Vec)((UIntVec)c ^ sign));
  Vec p = broadcast(0.0007308430504053831f);
  p = p * y - 0.000837064697407186f;
  p = p * y + 0.0017852429300546646f;
  p = p * y + 0.0021471672225743532f;
  p = p * y + 0.00850684940814972f;
  p = p * y + 0.037508707493543625f;
  p = p * y + 0.4501582086086273f;
  const Vec angle = fast_sqrt(y) * p;  // of |c|, over pi
  // c >= 0: 1 - angle; else angle.
  return (Vec)((UIntVec)angle ^ (sign ^ 0x80000000u)) + (Vec)(~(UIntVec)((IntVec)sign >> 31) & 0x3f800000u);
}

// weights[i] = angle_weight(weights[i])^exponent; `count` is a multiple of 2 kLanes.
template <int kExponent>
void weigh(float* weights, int count, int exponent) {
  constexpr int N = 2;
  for (int i = 0; i < count; i += N * kLanes) {
    Vec x[N], result[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) x[n] = angle_weight(load(weights + i + n * kLanes));
    if constexpr (kExponent == 9) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const Vec x2 = x[n] * x[n], x4 = x2 * x2;
        result[n] = x4 * x4 * x[n];
      }
    } else if constexpr (kExponent == 8) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const Vec x2 = x[n] * x[n], x4 = x2 * x2;
        result[n] = x4 * x4;
      }
    } else {
      for (int n = 0; n < N; ++n) {
        result[n] = broadcast(1.0f);
        Vec square = x[n];
        for (int rest = exponent; rest != 0; rest >>= 1) {
          if (rest & 1) result[n] *= square;
          square *= square;
        }
      }
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) store(weights + i + n * kLanes, result[n]);
  }
}

// One task's working memory, on its stack: 112 KiB, of which it touches what head_dim needs.
struct AttendScratch {
  alignas(64) float query[kMaxHeadDim * kB];    // [head_dim, 32 queries], unit length
  alignas(64) float rows[kB * kMaxHeadDim];     // [32, head_dim]
  alignas(64) float weights[kKeyTile * kB];     // [keys, 32 queries]
  alignas(64) float context[kB * kMaxHeadDim];  // [32 queries, padded_dim]
};

// weights [keys, 32] = keys · query; `keys` is a multiple of kKeyRows.
void multiply_keys(float* weights, const float* key, std::int64_t dim, int keys, const float* query) {
  constexpr int N = 2;
  for (int q = 0; q < kQueryVecs; q += N) {
    for (int j = 0; j < keys; j += kKeyRows) {
      Vec acc[kKeyRows][N] = {};
      multiply_tile<kKeyRows, N>(key + j * dim, dim, 1, query + q * kLanes, kB, dim, acc);
#pragma GCC unroll 16
      for (int r = 0; r < kKeyRows; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) store(weights + (j + r) * kB + (q + n) * kLanes, acc[r][n]);
    }
  }
}

template <typename T>
void attend_block(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const YosoCpuPlan& plan = *group.plan;
  const Block block = get_block(group, task);
  const std::int64_t dim = plan.head_dim, padded_dim = plan.padded_dim;
  AttendScratch scratch;
  if (block.tokens > 0) {
    load_tokens<T>(scratch.rows, plan.params.query, plan, block, dim);
    for (int i = 0; i < block.tokens; ++i) scale_row(scratch.rows + i * dim, dim, inverse_length(scratch.rows + i * dim, dim));
    transpose_rows<kB>(scratch.query, scratch.rows, block.tokens, dim, 1.0f);
    std::memset(scratch.context, 0, static_cast<std::size_t>(kB * padded_dim) * sizeof(float));
    const std::int64_t rows = (count_rows(plan, block.example) + kKeyRows - 1) / kKeyRows * kKeyRows;
    const float* keys = plan.keys + block.slot * plan.padded_rows * dim;
    const float* values = plan.values + block.slot * plan.padded_rows * padded_dim;
    const int exponent = static_cast<int>(plan.params.hash_code_len);
    for (std::int64_t at = 0; at < rows; at += kKeyTile) {
      const int count = static_cast<int>(rows - at < kKeyTile ? rows - at : kKeyTile);
      multiply_keys(scratch.weights, keys + at * dim, dim, count, scratch.query);
      if (exponent == 9)
        weigh<9>(scratch.weights, count * kB, exponent);
      else if (exponent == 8)
        weigh<8>(scratch.weights, count * kB, exponent);
      else
        weigh<0>(scratch.weights, count * kB, exponent);
      add_product(scratch.context, padded_dim, scratch.weights, 1, kB, values + at * padded_dim, padded_dim, count,
                  (block.tokens + 3) / 4 * 4, padded_dim);
    }
  }
  finish<T>(plan, block, scratch.context, padded_dim);
}

// ---------------------------------------------------------------------------------------------------------------------
// Mode lsh: hash codes.

// The bits of the rows in the lanes of one vector: codes [num_hash] of them.
struct Codes {
  alignas(64) UIntVec of_hash[kYosoMaxNumHash];

  MRA_INLINE void set(std::int64_t hash, std::int64_t bit, Vec projection) {
    of_hash[hash] |= (UIntVec)(projection > 0.0f) & (1u << bit);
  }
};

// Writes the codes of `count` rows, the first ones of the lanes: to [num_hash, step], from `to` on.
void store_codes(std::uint16_t* to, std::int64_t step, const Codes& codes, std::int64_t num_hash, int count) {
  using Half = std::uint16_t __attribute__((vector_size(kLanes * 2)));
  for (std::int64_t h = 0; h < num_hash; ++h) {
    const Half code = __builtin_convertvector(codes.of_hash[h], Half);
    if (count == kLanes)
      std::memcpy(to + h * step, &code, sizeof(code));
    else
      for (int i = 0; i < count; ++i) to[h * step + i] = code[i];
  }
}

// x[i], x[i + stride] = x[i] + x[i + stride], x[i] - x[i + stride] for the strides 2^(Stages - 1) * stride ... stride, x [dim, kLanes].
template <int Stages>
MRA_INLINE void butterflies(float* x, std::int64_t dim, std::int64_t stride, const float* sign) {
  constexpr int kElements = 1 << Stages;
  for (std::int64_t high = 0; high < dim; high += kElements * stride) {
    for (std::int64_t low = high; low < high + stride; ++low) {
      Vec v[kElements];
#pragma GCC unroll 8
      for (int i = 0; i < kElements; ++i) {
        v[i] = load(x + (low + i * stride) * kLanes);
        if (sign != nullptr) v[i] *= sign[low + i * stride];
      }
#pragma GCC unroll 3
      for (int width = kElements / 2; width > 0; width /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < kElements; ++i)
          if ((i & width) == 0) {
            const Vec a = v[i], b = v[i + width];
            v[i] = a + b;
            v[i + width] = a - b;
          }
#pragma GCC unroll 8
      for (int i = 0; i < kElements; ++i) store(x + (low + i * stride) * kLanes, v[i]);
    }
  }
}

// One round: signs, then the Hadamard transform, in place.
void transform(float* x, std::int64_t dim, const float* sign) {
  std::int64_t stride = dim;
  while (stride > 1) {
    if (stride >= 8) {
      stride /= 8;
      butterflies<3>(x, dim, stride, sign);
    } else if (stride == 4) {
      stride = 1;
      butterflies<2>(x, dim, stride, sign);
    } else {
      stride = 1;
      butterflies<1>(x, dim, stride, sign);
    }
    sign = nullptr;
  }
}

// Working memory of one task of the hash stage: 180 KiB, of which it touches what the sizes need.
struct HashScratch {
  alignas(64) float rows[kB * kMaxHeadDim];        // [32, head_dim]
  alignas(64) float columns[2][kMaxHeadDim * kB];  // of queries and keys, [head_dim, 32]
  alignas(64) float transformed[kMaxHeadDim * kLanes];
  alignas(64) float constants[3 * kMaxHeadDim];  // one part's signs
  Codes codes;
};

// The codes of the rows in lanes [vec * kLanes, …) of columns [head_dim, 32], with the fast hash.
void fast_codes(const YosoCpuPlan& plan, const std::int32_t* signs, const float* columns, int vec, HashScratch& scratch) {
  const std::int64_t dim = plan.params.transform_dim(), parts = plan.params.parts();
  const std::int64_t code_len = plan.params.hash_code_len, bits = plan.params.hash_bits();
  for (std::int64_t part = 0; part < parts; ++part) {
    for (std::int64_t i = 0; i < 3 * dim; ++i) scratch.constants[i] = static_cast<float>(signs[part * 3 * dim + i]);
    for (std::int64_t d = 0; d < plan.head_dim; ++d) store(scratch.transformed + d * kLanes, load(columns + d * kB + vec * kLanes));
    for (std::int64_t d = plan.head_dim; d < dim; ++d) store(scratch.transformed + d * kLanes, Vec{});
    for (int round = 0; round < 3; ++round) transform(scratch.transformed, dim, scratch.constants + round * dim);
    std::int64_t hash = part / code_len, bit = part % code_len;
    for (std::int64_t d = 0, number = part; number < bits; ++d, number += parts) {
      scratch.codes.set(hash, bit, load(scratch.transformed + d * kLanes));
      hash += parts / code_len;
      bit += parts % code_len;
      if (bit >= code_len) {
        bit -= code_len;
        ++hash;
      }
    }
  }
}

// Rounds each row [n, dim] to integers of at most kYosoGridLimit, by a power of two of its own; a row with a value that is
// not finite becomes 0.
void round_to_grid(float* rows, int n, std::int64_t dim) {
  const Float8 magic = Float8{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  for (int i = 0; i < n; ++i) {
    float* row = rows + i * dim;
    UInt8 largest8 = {};
    for (std::int64_t d = 0; d < dim; d += 8) {
      const UInt8 magnitude = (UInt8)load8(row + d) & 0x7fffffff;
      largest8 = magnitude > largest8 ? magnitude : largest8;
    }
    std::uint32_t largest = 0;
    for (int j = 0; j < 8; ++j) largest = largest8[j] > largest ? largest8[j] : largest;
    const int exponent = static_cast<int>(largest >> 23);
    if (exponent == 255) {
      std::memset(row, 0, static_cast<std::size_t>(dim) * sizeof(float));
      continue;
    }
    // largest < 2^(exponent - 126); times 2^(9 - (exponent - 127)) it is below kYosoGridLimit = 2^10.
    const int scale_exponent = 127 + 9 - (exponent - 127) < 254 ? 127 + 9 - (exponent - 127) : 254;
    const std::uint32_t scale_bits = static_cast<std::uint32_t>(scale_exponent) << 23;
    float scale;
    std::memcpy(&scale, &scale_bits, sizeof(scale));
    for (std::int64_t d = 0; d < dim; d += 8) store8(row + d, (load8(row + d) * scale + magic) - magic);
  }
}

// As fast_codes, with random projections; the columns are on the grid. Every sum is exact, so that their order is free.
void projected_codes(const YosoCpuPlan& plan, const std::int32_t* projections, const float* columns, int vec,
                     HashScratch& scratch) {
  constexpr int kBits = 8;
  const std::int64_t dim = plan.head_dim, code_len = plan.params.hash_code_len, bits = plan.params.hash_bits();
  std::int64_t hash = 0, bit = 0;
  for (std::int64_t first = 0; first < bits; first += kBits) {
    const int count = static_cast<int>(bits - first < kBits ? bits - first : kBits);
    float* rows = scratch.rows;  // [kBits, dim]
    for (std::int64_t i = 0; i < count * dim; ++i) rows[i] = static_cast<float>(projections[first * dim + i]);
    for (std::int64_t i = count * dim; i < kBits * dim; ++i) rows[i] = 0.0f;
    Vec acc[kBits][1] = {};
    multiply_tile<kBits, 1>(rows, dim, 1, columns + vec * kLanes, kB, dim, acc);
    for (int r = 0; r < count; ++r) {
      scratch.codes.set(hash, bit, acc[r][0]);
      if (++bit == code_len) {
        bit = 0;
        ++hash;
      }
    }
  }
}

template <typename T>
void hash_block(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const YosoCpuPlan& plan = *group.plan;
  const YosoAttentionParams& p = plan.params;
  const Block block = get_block(group, task);
  if (block.tokens == 0) return;
  HashScratch scratch;
  std::int64_t dims[4], size = 1;
  const int rank = p.hash_constants_shape(dims);
  for (int i = 1; i < rank; ++i) size *= dims[i];
  const std::int32_t* constants = p.hash_constants + block.head * size;
  const void* tensors[2] = {p.query, p.key};
  std::uint16_t* codes[2] = {plan.query_codes, plan.key_codes};
  for (int i = 0; i < 2; ++i) {
    load_tokens<T>(scratch.rows, tensors[i], plan, block, plan.head_dim);
    if (p.fast_hash == 0) round_to_grid(scratch.rows, block.tokens, plan.head_dim);
    transpose_rows<kB>(scratch.columns[i], scratch.rows, block.tokens, plan.head_dim, 1.0f);
  }
  for (int i = 0; i < 2; ++i) {
    for (int vec = 0; vec * kLanes < block.tokens; ++vec) {
      std::memset(scratch.codes.of_hash, 0, static_cast<std::size_t>(p.num_hash) * sizeof(UIntVec));
      if (p.fast_hash != 0)
        fast_codes(plan, constants, scratch.columns[i], vec, scratch);
      else
        projected_codes(plan, constants, scratch.columns[i], vec, scratch);
      const int left = block.tokens - vec * kLanes;
      store_codes(codes[i] + block.slot * p.num_hash * plan.padded_rows + block.row + vec * kLanes, plan.padded_rows, scratch.codes,
                  p.num_hash, left < kLanes ? left : kLanes);
    }
  }
  // The values, a slice of columns after the other.
  load_tokens<T>(scratch.rows, p.value, plan, block, plan.head_dim);
  for (std::int64_t slice = 0; slice * kSlice < plan.padded_dim; ++slice) {
    float* to = plan.value_slices + ((block.slot * (plan.padded_dim / kSlice) + slice) * plan.padded_rows + block.row) * kSlice;
    const std::int64_t left = plan.head_dim - slice * kSlice;  // a slice has 8 or 16 columns
    for (int i = 0; i < block.tokens; ++i) {
      const float* from = scratch.rows + i * plan.head_dim + slice * kSlice;
      store8(to + i * kSlice, load8(from));
      store8(to + i * kSlice + 8, left > 8 ? load8(from + 8) : Float8{});
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Mode lsh: tables.

MRA_INLINE void add_slice(float* to, const Vec (&x)[kSliceVecs]) {
#pragma GCC unroll 4
  for (int n = 0; n < kSliceVecs; ++n) store(to + n * kLanes, load(to + n * kLanes) + x[n]);
}

MRA_INLINE void load_slice(Vec (&x)[kSliceVecs], const float* from) {
#pragma GCC unroll 4
  for (int n = 0; n < kSliceVecs; ++n) x[n] = load(from + n * kLanes);
}

// Adds what N hashes give to the sums of one slice: fills their tables with the keys' values, then reads the queries' buckets.
template <int N>
void sum_hashes(float* tables, std::int64_t table_size, const std::uint16_t* query_codes, const std::uint16_t* key_codes,
                std::int64_t step, const float* values, float* sums, std::int64_t rows) {
  std::memset(tables, 0, static_cast<std::size_t>(N * table_size) * sizeof(float));
  for (std::int64_t i = 0; i < rows; ++i) {
    Vec value[kSliceVecs];
    load_slice(value, values + i * kSlice);
#pragma GCC unroll 8
    for (int h = 0; h < N; ++h) add_slice(tables + h * table_size + key_codes[h * step + i] * kSlice, value);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    Vec sum[kSliceVecs];
    load_slice(sum, sums + i * kSlice);
#pragma GCC unroll 8
    for (int h = 0; h < N; ++h) {
      const float* bucket = tables + h * table_size + query_codes[h * step + i] * kSlice;
#pragma GCC unroll 4
      for (int n = 0; n < kSliceVecs; ++n) sum[n] += load(bucket + n * kLanes);
    }
#pragma GCC unroll 4
    for (int n = 0; n < kSliceVecs; ++n) store(sums + i * kSlice + n * kLanes, sum[n]);
  }
}

void sum_slices(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const YosoCpuPlan& plan = *group.plan;
  const std::int64_t slices = plan.padded_dim / kSlice, num_hash = plan.params.num_hash;
  const std::int64_t table_size = (std::int64_t{1} << plan.params.hash_code_len) * kSlice;
  const std::int64_t slot = static_cast<std::int64_t>(task);
  float* tables = plan.table_memory + slot * plan.tables * table_size;
  for (std::int64_t item = slot; item < group.count * slices; item += plan.table_slots) {
    const std::int64_t head = item / slices;
    const std::int64_t rows = count_rows(plan, (group.first + head) / plan.params.num_heads);
    const float* values = plan.value_slices + item * plan.padded_rows * kSlice;
    float* sums = plan.sum_slices + item * plan.padded_rows * kSlice;
    std::memset(sums, 0, static_cast<std::size_t>(rows * kSlice) * sizeof(float));
    std::int64_t hash = 0;
    const auto sum = [&](auto function, int count) {
      for (; count <= plan.tables && hash + count <= num_hash; hash += count) {
        const std::int64_t codes = (head * num_hash + hash) * plan.padded_rows;
        function(tables, table_size, plan.query_codes + codes, plan.key_codes + codes, plan.padded_rows, values, sums, rows);
      }
    };
    sum(sum_hashes<8>, 8);
    sum(sum_hashes<4>, 4);
    sum(sum_hashes<2>, 2);
    sum(sum_hashes<1>, 1);
  }
}

template <typename T>
void finish_block(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const YosoCpuPlan& plan = *group.plan;
  const Block block = get_block(group, task);
  const std::int64_t slices = plan.padded_dim / kSlice;
  const float share = 1.0f / static_cast<float>(plan.params.num_hash);
  alignas(64) float rows[kB * kMaxHeadDim];  // [tokens, padded_dim]
  for (std::int64_t slice = 0; slice < slices; ++slice) {
    const float* from = plan.sum_slices + ((block.slot * slices + slice) * plan.padded_rows + block.row) * kSlice;
    for (int i = 0; i < block.tokens; ++i)
      for (int n = 0; n < kSliceVecs; ++n)
        store(rows + i * plan.padded_dim + slice * kSlice + n * kLanes, load(from + i * kSlice + n * kLanes) * share);
  }
  finish<T>(plan, block, rows, plan.padded_dim);
}

// ---------------------------------------------------------------------------------------------------------------------

// Step 1: which positions are tokens, and how many come before each block.
void find_tokens(const YosoCpuPlan& plan) {
  const std::int64_t seq_len = plan.params.seq_len;
  for (std::int64_t example = 0; example < plan.params.batch; ++example) {
    const std::int32_t* mask = plan.params.attention_mask + example * seq_len;
    std::int32_t* starts = plan.row_starts + example * (plan.nb + 1);
    std::int32_t row = 0;
    for (std::int64_t block = 0; block < plan.nb; ++block) {
      std::uint32_t bits = 0;
      for (int i = 0; i < kB && block * kB + i < seq_len; ++i)
        if (mask[block * kB + i] != 0) bits |= std::uint32_t{1} << i;
      plan.token_bits[example * plan.nb + block] = bits;
      starts[block] = row;
      row += __builtin_popcount(bits);
    }
    starts[plan.nb] = row;
  }
}

template <typename T>
void run_typed(const YosoCpuPlan& plan) {
  find_tokens(plan);
  for (std::int64_t first = 0; first < plan.heads; first += plan.group_heads) {
    const std::int64_t left = plan.heads - first;
    const Group group{&plan, first, left < plan.group_heads ? left : plan.group_heads};
    if (plan.params.lsh()) {
      parallel_for(plan, hash_block<T>, &group, group.count * plan.nb);
      parallel_for(plan, sum_slices, &group, plan.table_slots);
      parallel_for(plan, finish_block<T>, &group, group.count * plan.nb);
    } else {
      parallel_for(plan, pack_block<T>, &group, group.count * plan.nb);
      parallel_for(plan, attend_block<T>, &group, group.count * plan.nb);
    }
  }
}

}  // namespace

void run_yoso(const YosoCpuPlan& plan) noexcept {
  switch (plan.params.dtype) {
    case DType::kFloat32:
      return run_typed<float>(plan);
    case DType::kFloat16:
      return run_typed<Float16>(plan);
    case DType::kBFloat16:
      return run_typed<BFloat16>(plan);
  }
}

}  // namespace MRA_CPU_NAMESPACE
}  // namespace mra
