// MRA's CPU operator, compiled once per instruction set (MRA_CPU_NAMESPACE names it, the compiler's flags select it).
//
// Everything here has internal linkage and no standard-library template is used; cpu_vector.h says why.
//
//  1. pool      per (example, block): token bits and counts, pooled q, k, v of all heads,        steps 1-2 of op_spec
//               and where heads are large, a copy of k and v head by head
//  2. select    per head: low-resolution scores, the top T as lists per row, low-resolution sums  steps 3-7, 10
//  3. attend    per (head, query block): online softmax over the row's list, started from 2       steps 8-12
//
// Vectors hold query rows in their lanes during q·k: the row maximum and the sum then need no work across lanes, keys and
// weights are read as scalars in the order they lie in memory, and only the query block is transposed.
#include <cstring>

#include "mra2_attention/mra2_attention_cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mra {
namespace MRA_CPU_NAMESPACE {
namespace {

#include "common/cpu_vector.h"

constexpr int kB = kBlockSize;
constexpr int kQueryVecs = kB / kLanes;
// Register tiles (rows x vectors): as many accumulators as the registers hold beside the operands.
constexpr int kKeyRows = kLanes == 16 ? 8 : 4;
constexpr int kTileVecs = kLanes == 16 ? 4 : 2;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLowest = -1e30f;  // an online maximum before its first entry

// 2^x for x <= 0 by the polynomial for 2^r, |r| <= 1/2, whose highest coefficient comes first; 2^-126 below that; NaN for NaN.
template <int N>
MRA_INLINE Vec exp2_by(Vec x, const float (&coefficients)[N]) {
  x = vmax(broadcast(-126.0f), x);
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which lands in the low bits
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  Vec p = broadcast(coefficients[0]);
#pragma GCC unroll 8
  for (int i = 1; i < N; ++i) p = p * r + coefficients[i];
  return (Vec)((UIntVec)p + ((UIntVec)shifted << 23));  // unsigned: what NaN leads to may overflow
}

// Relative error below 1e-7.
MRA_INLINE Vec exp2_nonpositive(Vec x) {
  constexpr float kCoefficients[] = {0.00015345812006346848f,
                                     0.0013399931219189559f,
                                     0.00961848895710427f,
                                     0.05550328776965331f,
                                     0.24022646890634194f,
                                     0.6931472057372677f,
                                     1.0f};
  return exp2_by(x, kCoefficients);
}

#if defined(__AVX512BF16__) || defined(__AVX512FP16__)
// Relative error below 1e-4: for what is rounded afterwards.
MRA_INLINE Vec rough_exp2_nonpositive(Vec x) {
  constexpr float kCoefficients[] = {0.055171658103525513f, 0.24261115811332737f, 0.69326099068276414f, 0.99992807148044149f};
  return exp2_by(x, kCoefficients);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// The one matrix kernel.

// Cache lines to fetch while a tile is computed.
struct Fetch {
  const char* at = nullptr;  // any address will do: a prefetch never faults
  std::ptrdiff_t step = 0;
};

MRA_INLINE void prefetch(Fetch& fetch) {
  __builtin_prefetch(fetch.at);
  fetch.at += fetch.step;
}

// The rows of one block that will be read soon, or written. They lie far apart, where no hardware prefetcher follows, so they
// are fetched while something else is computed; spread over it, for a burst would fill the queue of misses.
class Fetcher {
 public:
  Fetcher() = default;

  // The `rows` of `size` bytes from `first` on, `step` bytes apart, over the time of `takes` tiles of `portion` lines each.
  Fetcher(const void* first, std::int64_t step, std::int64_t size, int rows, std::int64_t takes, int portion)
      : first_(static_cast<const char*>(first)), step_(step), size_(size), rows_(rows), portion_(portion) {
    const std::int64_t lines = (size + 63) / 64 * rows;
    if (lines < takes * portion) every_ = takes * portion / lines;
  }

  // The next lines: one column of `portion` rows.
  MRA_INLINE Fetch take() {
    if (line_ >= size_ || ++calls_ < every_) return {};
    calls_ = 0;
    const Fetch fetch{first_ + row_ * step_ + line_, step_};
    row_ += portion_;
    if (row_ >= rows_) {
      row_ = 0;
      line_ += 64;
    }
    return fetch;
  }

 private:
  const char* first_ = nullptr;
  std::int64_t step_ = 0, size_ = 0, line_ = 0, row_ = 0, every_ = 1, calls_ = 0;
  int rows_ = kB, portion_ = 0;
};

// What is fetched beside a matrix product, in turns.
struct Fetchers {
  Fetcher even, odd;
};

// acc[r][n] += Σ_k a[r * row_step + k * k_step] * b[k * ldb + n * kLanes …], where an element may be a Pair: then k counts pairs.
template <int R, int N, typename Element>
MRA_INLINE void multiply_tile(const Element* a, std::ptrdiff_t row_step, std::ptrdiff_t k_step, const Element* b,
                              std::ptrdiff_t ldb, std::int64_t depth, Vec (&acc)[R][N], Fetch even, Fetch odd) {
  const auto add = [&](const Element* left_row, const Element* right_row) __attribute__((always_inline)) {
    decltype(load(right_row)) right[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) right[n] = load(right_row + n * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto left = broadcast(left_row[r * row_step]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[r][n] = multiply_add(acc[r][n], left, right[n]);
    }
  };
  std::int64_t k = 0;
  for (; k + 2 <= depth; k += 2) {
    prefetch(even);
    add(a, b);
    prefetch(odd);
    add(a + k_step, b + ldb);
    a += 2 * k_step;
    b += 2 * ldb;
  }
  if (k < depth) add(a, b);
}

// The right-hand matrix of a product. Its rows, `step` apart, lie in up to two places, one after the other.
template <typename Element>
struct Right {
  const Element* rows[2];
  std::int64_t depth[2];
  int parts;
  std::ptrdiff_t step;
};

// One tile of c = c * row_scale + a·b, from column `column` of b on; row_scale null: c = a·b.
template <int R, int N, typename Element>
MRA_INLINE void update_tile(float* c, std::ptrdiff_t ldc, const float* row_scale, const Element* a, std::ptrdiff_t row_step,
                            std::ptrdiff_t k_step, const Right<Element>& b, std::ptrdiff_t column, Fetchers* fetchers) {
  Vec acc[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) acc[r][n] = row_scale == nullptr ? Vec{} : load(c + r * ldc + n * kLanes) * row_scale[r];
  for (int part = 0; part < b.parts; ++part) {
    const Element* rows = b.rows[part] + column;
    if (fetchers != nullptr)
      multiply_tile<R, N>(a, row_step, k_step, rows, b.step, b.depth[part], acc, fetchers->even.take(), fetchers->odd.take());
    else
      multiply_tile<R, N>(a, row_step, k_step, rows, b.step, b.depth[part], acc, {}, {});
    a += b.depth[part] * k_step;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(c + r * ldc + n * kLanes, acc[r][n]);
}

template <int N>
constexpr int kUpdateRows = kLanes == 16 && N <= 2 ? 8 : 4;

template <int N, typename Element>
void update_columns(float* c, std::ptrdiff_t ldc, const float* row_scale, const Element* a, std::ptrdiff_t row_step,
                    std::ptrdiff_t k_step, const Right<Element>& b, std::ptrdiff_t column, std::int64_t rows, Fetchers* fetchers) {
  constexpr int kRows = kUpdateRows<N>;
  std::int64_t r = 0;
  for (; r + kRows <= rows; r += kRows)
    update_tile<kRows, N>(c + r * ldc, ldc, row_scale == nullptr ? nullptr : row_scale + r, a + r * row_step, row_step, k_step, b,
                          column, fetchers);
  for (; r < rows; ++r)
    update_tile<1, N>(c + r * ldc, ldc, row_scale == nullptr ? nullptr : row_scale + r, a + r * row_step, row_step, k_step, b,
                      column, nullptr);
}

// c [rows, width] = c * row_scale + a·b, where a is [rows, depth of b] with the given steps. `width` is a multiple of the vector.
template <typename Element>
void update_matrix(float* c, std::ptrdiff_t ldc, const float* row_scale, const Element* a, std::ptrdiff_t row_step,
                   std::ptrdiff_t k_step, const Right<Element>& b, std::int64_t rows, std::int64_t width,
                   Fetchers* fetchers = nullptr) {
  std::int64_t column = 0;
  for (; column + kTileVecs * kLanes <= width; column += kTileVecs * kLanes)
    update_columns<kTileVecs>(c + column, ldc, row_scale, a, row_step, k_step, b, column, rows, fetchers);
  if (kTileVecs > 2 && column + 2 * kLanes <= width) {
    update_columns<2>(c + column, ldc, row_scale, a, row_step, k_step, b, column, rows, fetchers);
    column += 2 * kLanes;
  }
  if (column < width) update_columns<1>(c + column, ldc, row_scale, a, row_step, k_step, b, column, rows, fetchers);
}

// The tiles of update_matrix over kB rows.
constexpr std::int64_t count_update_tiles(std::int64_t width) {
  const std::int64_t vecs = width / kLanes, rest = vecs % kTileVecs;
  std::int64_t tiles = vecs / kTileVecs * (kB / kUpdateRows<kTileVecs>);
  if (kTileVecs > 2 && rest >= 2) tiles += kB / kUpdateRows<2>;
  if (rest % 2 != 0) tiles += kB / kUpdateRows<1>;
  return tiles;
}

// ---------------------------------------------------------------------------------------------------------------------
// 1. Pool

// Adds N rows into sum [count], and hands each part of them to copy(row, column, part); count is a multiple of 8.
template <int N, typename T, typename Copy>
MRA_INLINE void add_rows(float* sum, const T* const* rows, std::int64_t count, const Copy& copy) {
  for (std::int64_t i = 0; i < count; i += 8) {
    Float8 parts[N];
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) parts[r] = load8(rows[r] + i);
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) copy(r, i, parts[r]);
    if constexpr (N == 4)
      store8(sum + i, load8(sum + i) + ((parts[0] + parts[1]) + (parts[2] + parts[3])));
    else
      store8(sum + i, load8(sum + i) + parts[0]);
  }
}

// Writes zeros to the rows of a block of the context that are no tokens: `bits` has the tokens, the sequence `left` rows from it on.
template <typename T>
void clear_padding(T* context, std::int64_t hidden, std::int64_t dim, std::int64_t left, std::uint32_t bits) {
  const int rows = static_cast<int>(left < kB ? left : kB);
  for (int i = 0; i < rows; ++i)
    if (!(bits >> i & 1)) std::memset(static_cast<void*>(context + i * hidden), 0, static_cast<std::size_t>(dim) * sizeof(T));
}

// Writes the numbers of the set bits, at most kB, to `list`, and returns how many they are.
int list_bits(std::uint32_t bits, int* list) {
  int n = 0;
  for (; bits != 0; bits &= bits - 1) list[n++] = __builtin_ctz(bits);
  return n;
}

constexpr std::int64_t kPoolWidth = 1024;  // columns pooled at a time: their sums stay in the first-level cache

// What becomes of the rows that are pooled: a copier has
//   kHeads    whether it wants them head by head
//   copy      takes eight elements, from column i on, of row `row` of the head numbered j
//   finish    is called for each head when it has got its n rows
struct NoCopy {
  static constexpr bool kHeads = false;
  MRA_INLINE void copy(std::int64_t, int, std::int64_t, Float8) const {}
  void finish(std::int64_t, int) const {}
};

// Copies them to [heads, nb, 32, step], as they are.
struct FloatCopy {
  static constexpr bool kHeads = true;
  float* rows;                 // of the first head, this block
  std::int64_t nb, dim, step;  // step: head_dim, or that rounded up and filled with zeros

  MRA_INLINE float* place(std::int64_t j, int row) const { return rows + (j * nb * kB + row) * step; }
  MRA_INLINE void copy(std::int64_t j, int row, std::int64_t i, Float8 part) const { store8(place(j, row) + i, part); }
  void finish(std::int64_t j, int n) const {
    // Keys are multiplied kKeyRows at a time: those that fill them up give 0.
    const int filled = (n + kKeyRows - 1) / kKeyRows * kKeyRows;
    std::memset(place(j, n), 0, static_cast<std::size_t>((filled - n) * step) * sizeof(float));
    for (int row = 0; step != dim && row < n; ++row)
      std::memset(place(j, row) + dim, 0, static_cast<std::size_t>(step - dim) * sizeof(float));
  }
};

// Pools one block of one tensor, for the heads [begin, end) of the example.
template <typename T, typename Copier>
void pool_tensor(const Mra2CpuPlan& plan, const void* tensor, std::int64_t example, std::int64_t begin, std::int64_t end,
                 std::int64_t block, std::uint32_t bits, float count, float* pooled, bool transposed, Copier copier) {
  const std::int64_t hidden = plan.params.hidden_size;
  const std::int64_t dim = plan.head_dim;
  const T* rows[kB];
  int n = 0;
  const T* first = static_cast<const T*>(tensor) + (example * plan.params.seq_len + block * kB) * hidden;
  for (int i = 0; i < kB; ++i)
    if (bits >> i & 1) rows[n++] = first + i * hidden;

  const float divisor = count + kPoolEpsilon;
  alignas(64) float sum[kPoolWidth];
  const std::int64_t heads_at_once = kPoolWidth / dim;
  for (std::int64_t head = begin; head < end; head += heads_at_once) {
    const std::int64_t left = end - head;
    const std::int64_t width = (left < heads_at_once ? left : heads_at_once) * dim;
    std::memset(sum, 0, static_cast<std::size_t>(width) * sizeof(float));
    // A copy goes head by head; without one, all heads are as one.
    const std::int64_t part = Copier::kHeads ? dim : width;
    const std::int64_t before = head - begin;
    int i = 0;
    for (; i + 4 <= n; i += 4) {
      for (std::int64_t at = 0; at < width; at += part) {
        const std::int64_t from = head * dim + at, j = before + at / dim;
        const T* four[] = {rows[i] + from, rows[i + 1] + from, rows[i + 2] + from, rows[i + 3] + from};
        add_rows<4>(sum + at, four, part,
                    [&](int r, std::int64_t d, Float8 x) __attribute__((always_inline)) { copier.copy(j, i + r, d, x); });
      }
    }
    for (; i < n; ++i) {
      for (std::int64_t at = 0; at < width; at += part) {
        const T* one[] = {rows[i] + head * dim + at};
        add_rows<1>(sum + at, one, part,
                    [&](int, std::int64_t d, Float8 x) __attribute__((always_inline)) { copier.copy(before + at / dim, i, d, x); });
      }
    }
    for (std::int64_t j = 0; j < width / dim; ++j) copier.finish(before + j, n);
    for (std::int64_t j = 0; j < width / dim; ++j) {
      const std::int64_t pair = example * plan.params.num_heads + head + j;
      if (transposed) {
        float* to = pooled + pair * dim * plan.padded_nb + block;
        for (std::int64_t d = 0; d < dim; ++d) to[d * plan.padded_nb] = sum[j * dim + d] / divisor;
      } else {
        float* to = pooled + (pair * plan.nb + block) * plan.padded_dim;
        for (std::int64_t d = 0; d < dim; ++d) to[d] = sum[j * dim + d] / divisor;
        for (std::int64_t d = dim; d < plan.padded_dim; ++d) to[d] = 0.0f;
      }
    }
  }
}

#if defined(__AVX512BF16__)
// Copies the tokens of one block in pairs, for the heads [begin, end) of the example: keys of two dimensions each, values of two
// tokens each. `slot` is the place of the head `begin`.
template <typename T>
void pair_block(const Mra2CpuPlan& plan, std::int64_t example, std::int64_t begin, std::int64_t end, std::int64_t block,
                std::uint32_t bits, std::int64_t slot) {
  const std::int64_t hidden = plan.params.hidden_size;
  const std::int64_t dim = plan.head_dim, padded_dim = plan.padded_dim;
  const std::int64_t first = (example * plan.params.seq_len + block * kB) * hidden;
  int tokens[kB];
  const int n = list_bits(bits, tokens);
  const int filled = (n + kKeyRows - 1) / kKeyRows * kKeyRows;
  const T* key = static_cast<const T*>(plan.params.key) + first;
  const T* value = static_cast<const T*>(plan.params.value) + first;
  // Row by row through all heads, as they lie in memory.
  const std::int64_t key_size = plan.nb * kB * (dim / 2), value_size = plan.nb * (kB / 2) * padded_dim;  // of one head
  Pair* keys = reinterpret_cast<Pair*>(plan.reduced_key) + slot * key_size + block * kB * (dim / 2);
  Pair* values = reinterpret_cast<Pair*>(plan.reduced_value) + slot * value_size + block * (kB / 2) * padded_dim;
  for (int j = 0; j < filled; ++j) {
    Pair* to = keys + j * (dim / 2);
    for (std::int64_t head = begin; head < end; ++head, to += key_size) {
      if (j >= n) {
        std::memset(static_cast<void*>(to), 0, static_cast<std::size_t>(dim / 2) * sizeof(Pair));
        continue;
      }
      const T* row = key + tokens[j] * hidden + head * dim;
      for (std::int64_t d = 0; d < dim; d += 8) store_pairs(to + d / 2, load8(row + d));
    }
  }
  for (int j = 0; j < n; j += 2) {
    Pair* to = values + j / 2 * padded_dim;
    const T* even = value + tokens[j] * hidden;
    const T* odd = j + 1 < n ? value + tokens[j + 1] * hidden : nullptr;
    for (std::int64_t head = begin; head < end; ++head, to += value_size) {
      for (std::int64_t d = 0; d < dim; d += 8)
        store_pairs(to + d, load8(even + head * dim + d), odd == nullptr ? Float8{} : load8(odd + head * dim + d));
      if (padded_dim != dim) std::memset(static_cast<void*>(to + dim), 0, 8 * sizeof(Pair));
    }
  }
}
#endif

#if defined(__AVX512FP16__)
#include "mra2_attention/mra2_attention_cpu_half.h"
#endif

// What the tasks of every stage are given: the heads that go through the stages together.
struct Group {
  const Mra2CpuPlan* plan;
  std::int64_t first;  // head
  std::int64_t count;
};

template <typename T>
void pool_block(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const Mra2CpuPlan& plan = *group.plan;
  const std::int64_t num_heads = plan.params.num_heads;
  const std::int64_t example = group.first / num_heads + static_cast<std::int64_t>(task) / plan.nb;
  const std::int64_t block = static_cast<std::int64_t>(task) % plan.nb;
  // The group's heads of this example.
  const std::int64_t before = group.first - example * num_heads;
  const std::int64_t begin = before > 0 ? before : 0;
  const std::int64_t end = before + group.count < num_heads ? before + group.count : num_heads;

  const std::int32_t* mask = plan.params.attention_mask + example * plan.params.seq_len;
  std::uint32_t bits = 0;
  int count = 0;
  for (int i = 0; i < kB; ++i) {
    if (block * kB + i < plan.params.seq_len && mask[block * kB + i] != 0) {
      bits |= std::uint32_t{1} << i;
      ++count;
    }
  }
  plan.token_bits[example * plan.nb + block] = bits;
  plan.token_counts[example * plan.padded_nb + block] = static_cast<float>(count);
  const float c = static_cast<float>(count);
  const std::int64_t slot = example * num_heads + begin - group.first;
  const auto pool = [&](const void* tensor, float* pooled, bool transposed, auto copier) {
    pool_tensor<T>(plan, tensor, example, begin, end, block, bits, c, pooled, transposed, copier);
  };
#if defined(__AVX512FP16__)
  const HalfSource source(plan, example, begin, block, bits);
  pool(plan.params.query, plan.pooled_query, false,
       HalfCopy<T>(source, plan.params.query, plan.reduced_query, plan.query_scales, slot));
  pool(plan.params.key, plan.pooled_key, true, HalfCopy<T>(source, plan.params.key, plan.reduced_key, plan.key_scales, slot));
  pool(plan.params.value, plan.pooled_value, false,
       HalfCopy<T>(source, plan.params.value, plan.reduced_value, plan.value_scales, slot));
#else
  const auto pool_packing = [&](const void* tensor, float* pooled, bool transposed, float* packed, std::int64_t step) {
    if (packed == nullptr) return pool(tensor, pooled, transposed, NoCopy{});
    pool(tensor, pooled, transposed, FloatCopy{packed + (slot * plan.nb + block) * kB * step, plan.nb, plan.head_dim, step});
  };
  pool_packing(plan.params.query, plan.pooled_query, false, plan.packed_query, plan.head_dim);
  pool_packing(plan.params.key, plan.pooled_key, true, plan.packed_key, plan.head_dim);
  pool_packing(plan.params.value, plan.pooled_value, false, plan.packed_value, plan.padded_dim);
#endif
#if defined(__AVX512BF16__)
  pair_block<T>(plan, example, begin, end, block, bits, slot);
#endif
  if (block == plan.nb - 1) {  // the columns that round nb up
    for (std::int64_t pad = plan.nb; pad < plan.padded_nb; ++pad) {
      plan.token_counts[example * plan.padded_nb + pad] = 0.0f;
      for (std::int64_t row = begin * plan.head_dim; row < end * plan.head_dim; ++row)
        plan.pooled_key[(example * num_heads * plan.head_dim + row) * plan.padded_nb + pad] = 0.0f;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// 2. Select

// What the functions of this stage see of one head.
struct Head {
  std::int64_t index;
  const float* counts;  // [padded_nb]
  std::int64_t used;    // blocks up to the last one with a token
  float* scores;        // [nb, padded_nb]
};

Head get_head(const Mra2CpuPlan& plan, std::int64_t index, std::int64_t slot) {
  Head head;
  head.index = index;
  head.counts = plan.token_counts + index / plan.params.num_heads * plan.padded_nb;
  head.used = plan.nb;
  while (head.used > 0 && head.counts[head.used - 1] == 0.0f) --head.used;
  head.scores = plan.scores + slot * plan.nb * plan.padded_nb;
  return head;
}

// Scores L - r of the rows [begin, end), and r itself (steps 3 to 6, without the priors).
void score_rows(const Mra2CpuPlan& plan, const Head& head, std::int64_t begin, std::int64_t end) {
  const std::int64_t width = (head.used + kLanes - 1) / kLanes * kLanes;
  const std::int64_t padded_nb = plan.padded_nb;
  const float* query = plan.pooled_query + head.index * plan.nb * plan.padded_dim;
  const float* key = plan.pooled_key + head.index * plan.head_dim * padded_nb;
  update_matrix(head.scores + begin * padded_nb, padded_nb, nullptr, query + begin * plan.padded_dim, plan.padded_dim, 1,
                Right<float>{{key, nullptr}, {plan.head_dim, 0}, 1, padded_nb}, end - begin, width);
  const float infinity = __builtin_inff();
  for (std::int64_t a = begin; a < end; ++a) {
    float* row = head.scores + a * padded_nb;
    for (std::int64_t b = 0; b < width; b += kLanes) store(row + b, load(row + b) * plan.params.scale);
    for (std::int64_t b = width; b < plan.nb; ++b) row[b] = 0.0f;
    for (std::int64_t b = plan.nb; b < padded_nb; ++b) row[b] = -infinity;
    Vec largest = broadcast(-infinity);
    for (std::int64_t b = 0; b < padded_nb; b += kLanes) largest = vmax(largest, load(row + b));
    float r = -infinity;
    for (int lane = 0; lane < kLanes; ++lane) r = largest[lane] > r ? largest[lane] : r;
    plan.row_max[head.index * plan.nb + a] = r;
    const Vec row_penalty = broadcast(head.counts[a] == 0.0f ? kMaskedBlockPenalty : 0.0f);
    for (std::int64_t b = 0; b < padded_nb; b += kLanes) {
      const Vec penalty = load(head.counts + b) == 0.0f ? broadcast(kMaskedBlockPenalty) : row_penalty;
      store(row + b, (load(row + b) - penalty) - r);
    }
  }
}

constexpr int kKeyChunk = 256;

// Maps scores [begin, end) of row a, at most kKeyChunk, to integers in the same order: equal scores to equal integers, NaN
// above all (as torch.topk has it).
void order_keys(const Mra2CpuPlan& plan, const float* row, std::int64_t a, std::int64_t begin, std::int64_t end,
                std::uint32_t* keys) {
  const std::int64_t first_n = plan.params.initial_prior_first_n_blocks;
  const std::int64_t diagonal_n = plan.params.initial_prior_diagonal_n_blocks;
  float scores[kKeyChunk];
  const std::int64_t n = end - begin;
  // Adding +0 turns -0 into +0.
  for (std::int64_t i = 0; i < n; ++i) scores[i] = row[begin + i] + 0.0f;
  if (diagonal_n > 0) {
    const std::int64_t reach = diagonal_n / 2;
    const std::int64_t from = reach > a - begin ? 0 : a - reach - begin;
    const std::int64_t to = reach >= end - a ? n : a + reach + 1 - begin;
    for (std::int64_t i = from; i < to && i < n; ++i) scores[i] += kPriorBonus;
  }
  if (a < first_n)
    for (std::int64_t i = 0; i < n; ++i) scores[i] += kPriorBonus;
  if (begin < first_n) {
    const std::int64_t to = first_n < end ? first_n - begin : n;
    for (std::int64_t i = 0; i < to; ++i) scores[i] += kPriorBonus;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, &scores[i], 4);
    const std::uint32_t ordered = bits ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31) | 0x80000000u);
    keys[i] = (bits & 0x7fffffffu) > 0x7f800000u ? 0xffffffffu : ordered;
  }
}

// The T-th largest key of the head, and how many keys equal to it are selected. A radix select: three passes over the scores.
void find_threshold(const Mra2CpuPlan& plan, const Head& head, std::uint32_t* threshold, std::int64_t* ties) {
  constexpr int kBits[] = {12, 10, 10};
  constexpr int kTables = 4;  // neighbouring scores often fall into one bucket: separate tables avoid waiting for its counter
  std::int64_t wanted = plan.selected;  // the wanted-th largest of the keys that share `prefix`
  std::uint32_t prefix = 0;
  int shift = 32;
  for (const int bits : kBits) {
    std::uint32_t counts[kTables][1 << 12];
    std::memset(counts, 0, sizeof(counts));
    const int low = shift - bits;
    const std::uint32_t bucket_mask = (1u << bits) - 1;
    for (std::int64_t a = 0; a < plan.nb; ++a) {
      const float* row = head.scores + a * plan.padded_nb;
      for (std::int64_t begin = 0; begin < plan.nb; begin += kKeyChunk) {
        const std::int64_t end = begin + kKeyChunk < plan.nb ? begin + kKeyChunk : plan.nb;
        std::uint32_t keys[kKeyChunk];
        order_keys(plan, row, a, begin, end, keys);
        const std::int64_t n = end - begin;
        if (shift == 32) {
          for (std::int64_t i = 0; i < n; ++i) ++counts[i % kTables][keys[i] >> low];
        } else {
          for (std::int64_t i = 0; i < n; ++i)
            if (keys[i] >> shift == prefix) ++counts[0][keys[i] >> low & bucket_mask];
        }
      }
    }
    std::uint32_t bucket = bucket_mask;
    for (;; --bucket) {
      const std::int64_t in_bucket =
          static_cast<std::int64_t>(counts[0][bucket]) + counts[1][bucket] + counts[2][bucket] + counts[3][bucket];
      if (wanted <= in_bucket) break;
      wanted -= in_bucket;
    }
    prefix = shift == 32 ? bucket : prefix << bits | bucket;
    shift = low;
  }
  *threshold = prefix;
  *ties = wanted;
}

// Step 7: lists the selected key blocks row by row. Pairs without tokens are dropped, for they add nothing but the zeros of
// their padded keys, which the row's flags remember.
void select_blocks(const Mra2CpuPlan& plan, const Head& head) {
  std::uint32_t threshold = 0;
  std::int64_t ties = plan.selected;
  if (plan.selected < plan.nb * plan.nb) find_threshold(plan, head, &threshold, &ties);
  std::int32_t* columns = plan.columns + head.index * plan.selected;
  std::int32_t* starts = plan.row_starts + head.index * (plan.nb + 1);
  std::int32_t used = 0;
  for (std::int64_t a = 0; a < plan.nb; ++a) {
    const float* row = head.scores + a * plan.padded_nb;
    std::int32_t flags = 0;
    starts[a] = used;
    for (std::int64_t begin = 0; begin < plan.nb; begin += kKeyChunk) {
      const std::int64_t end = begin + kKeyChunk < plan.nb ? begin + kKeyChunk : plan.nb;
      std::uint32_t keys[kKeyChunk];
      order_keys(plan, row, a, begin, end, keys);
      for (std::int64_t i = 0; i < end - begin; ++i) {
        if (keys[i] < threshold) continue;
        if (keys[i] == threshold && --ties < 0) continue;
        flags |= kMra2RowHasBlock;
        if (head.counts[begin + i] == 0.0f)
          flags |= kMra2RowHasPadding;
        else if (head.counts[a] != 0.0f)
          columns[used++] = static_cast<std::int32_t>(begin + i);
      }
    }
    plan.row_flags[head.index * plan.nb + a] = flags;
  }
  starts[plan.nb] = used;
}

// Step 10 for the rows [begin, end): Σ W·v̂ and Σ W over the blocks that are not selected, shifted by r.
void sum_low_resolution(const Mra2CpuPlan& plan, const Head& head, std::int64_t begin, std::int64_t end) {
  const std::int64_t width = (head.used + kLanes - 1) / kLanes * kLanes;
  const std::int32_t* columns = plan.columns + head.index * plan.selected;
  const std::int32_t* starts = plan.row_starts + head.index * (plan.nb + 1);
  for (std::int64_t a = begin; a < end; ++a) {
    if (head.counts[a] == 0.0f) continue;
    float* row = head.scores + a * plan.padded_nb;
    for (std::int64_t b = 0; b < width; b += kLanes)
      store(row + b, load(head.counts + b) * exp2_nonpositive(load(row + b) * kLog2E));
    for (std::int32_t i = starts[a]; i < starts[a + 1]; ++i) row[columns[i]] = 0.0f;
    Vec total = Vec{};
    for (std::int64_t b = 0; b < width; b += kLanes) total += load(row + b);
    float sum = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) sum += total[lane];
    plan.low_weight[head.index * plan.nb + a] = sum;
  }
  const std::int64_t first = head.index * plan.nb;
  update_matrix(plan.pooled_query + (first + begin) * plan.padded_dim, plan.padded_dim, nullptr,
                head.scores + begin * plan.padded_nb, plan.padded_nb, 1,
                Right<float>{{plan.pooled_value + first * plan.padded_dim, nullptr}, {head.used, 0}, 1, plan.padded_dim},
                end - begin, plan.padded_dim);
}

constexpr std::int64_t kSelectRows = 64;  // of scores, for one task of a large head

std::int64_t count_select_tiles(const Mra2CpuPlan& plan) { return (plan.nb + kSelectRows - 1) / kSelectRows; }

void for_tile(void* argument, std::size_t task, void (*compute)(const Mra2CpuPlan&, const Head&, std::int64_t, std::int64_t)) {
  const Group& group = *static_cast<const Group*>(argument);
  const Mra2CpuPlan& plan = *group.plan;
  const std::int64_t tiles = count_select_tiles(plan);
  const std::int64_t slot = static_cast<std::int64_t>(task) / tiles;
  const std::int64_t begin = static_cast<std::int64_t>(task) % tiles * kSelectRows;
  const std::int64_t end = begin + kSelectRows < plan.nb ? begin + kSelectRows : plan.nb;
  compute(plan, get_head(plan, group.first + slot, slot), begin, end);
}

void score_tile(void* argument, std::size_t task) { for_tile(argument, task, score_rows); }
void sum_tile(void* argument, std::size_t task) { for_tile(argument, task, sum_low_resolution); }

void select_head(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const std::int64_t slot = static_cast<std::int64_t>(task);
  select_blocks(*group.plan, get_head(*group.plan, group.first + slot, slot));
}

void do_head(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const Mra2CpuPlan& plan = *group.plan;
  const std::int64_t slot = static_cast<std::int64_t>(task);
  const Head head = get_head(plan, group.first + slot, slot);
  score_rows(plan, head, 0, plan.nb);
  select_blocks(plan, head);
  if (plan.params.approx_mode == static_cast<std::int64_t>(ApproxMode::kFull)) sum_low_resolution(plan, head, 0, plan.nb);
}

// ---------------------------------------------------------------------------------------------------------------------
// 3. Attend

// Key blocks that are taken together: the context is read and written once for each pair.
constexpr int kPair = 2;

// The maximum, times log2(e), and the sum of each query's online softmax. The low-resolution part, which all queries of the block
// share, starts it.
struct OnlineSoftmax {
  Vec maximum[kQueryVecs], total[kQueryVecs];
  float floor = kLowest;  // what enters the maximum besides the keys: zeros of blocks without tokens, or the constant of step 9

  OnlineSoftmax(const Mra2CpuPlan& plan, std::int64_t block_row) {
    const bool full = plan.params.approx_mode == static_cast<std::int64_t>(ApproxMode::kFull);
    for (int q = 0; q < kQueryVecs; ++q) {
      maximum[q] = broadcast(full ? plan.row_max[block_row] * kLog2E : kLowest);
      total[q] = broadcast(full ? plan.low_weight[block_row] : 0.0f);
    }
    const std::int32_t flags = plan.row_flags[block_row];
    if (flags & kMra2RowHasPadding) floor = 0.0f;
    if (!(flags & kMra2RowHasBlock)) floor = kNoBlockMax * kLog2E;
  }

  // The sums so far become those to the new maximum; contexts have to be multiplied by `correction` [32].
  MRA_INLINE void raise(const Vec (&candidate)[kQueryVecs], float* correction) {
    for (int q = 0; q < kQueryVecs; ++q) {
      const Vec larger = vmax(maximum[q], candidate[q]);
      const Vec factor = exp2_nonpositive(maximum[q] - larger);
      store(correction + q * kLanes, factor);
      total[q] *= factor;
      maximum[q] = larger;
    }
  }

  // Where there are no keys, the maximum may still rise above r.
  void raise_without_keys(float* context, int rows, std::int64_t width, float* correction) {
    Vec none[kQueryVecs];
    for (int q = 0; q < kQueryVecs; ++q) none[q] = broadcast(floor);
    raise(none, correction);
    for (int i = 0; i < rows; ++i)
      for (std::int64_t d = 0; d < width; d += kLanes) {
        float* at = context + i * width + d;
        store(at, load(at) * correction[i]);
      }
  }

  // Writes the rows of context [32, width] where their queries are.
  template <typename T>
  void write(T* to, std::int64_t hidden, const int* queries, int rows, const float* context, std::int64_t width, std::int64_t dim,
             float* factors) const {
    for (int q = 0; q < kQueryVecs; ++q) store(factors + q * kLanes, 1.0f / (total[q] + kNormalizerEpsilon));
    for (int i = 0; i < rows; ++i)
      for (std::int64_t d = 0; d < dim; d += 8) store8(to + queries[i] * hidden + d, load8(context + i * width + d) * factors[i]);
  }
};

// The context before its first key: the low-resolution sums. It has kB rows of `width`, at least padded_dim.
void begin_context(const Mra2CpuPlan& plan, std::int64_t block_row, float* context, std::int64_t width) {
  const bool full = plan.params.approx_mode == static_cast<std::int64_t>(ApproxMode::kFull);
  if (!full || width != plan.padded_dim) std::memset(context, 0, static_cast<std::size_t>(kB * width) * sizeof(float));
  if (!full) return;
  const float* low = plan.pooled_query + block_row * plan.padded_dim;
  for (int i = 0; i < kB; ++i) std::memcpy(context + i * width, low, static_cast<std::size_t>(plan.padded_dim) * sizeof(float));
}

#if defined(__AVX512FP16__)
#include "mra2_attention/mra2_attention_cpu_half_attend.h"
#else

// One task's working memory, on its stack: 168 KiB, of which it touches what head_dim needs.
struct AttendScratch {
  alignas(64) float query[kMaxHeadDim * kB];          // [head_dim, 32 queries], times scale·log2(e)
  alignas(64) float rows[kB * kMaxHeadDim];           // [32, head_dim]: query rows, then key rows, as float
  alignas(64) float value[kPair * kB * kMaxHeadDim];  // [keys of both blocks, padded_dim]
  alignas(64) float weights[kPair * kB * kB];         // [keys of both blocks, 32 queries]: G·log2(e), then e^(G - M)
  alignas(64) float context[kB * kMaxHeadDim];        // [32 queries, padded_dim]
  alignas(64) float correction[kB];                   // [32 queries]
#if defined(__AVX512BF16__)
  alignas(64) Pair paired_query[kMaxHeadDim / 2 * kB];   // [head_dim / 2, 32 queries]
  alignas(64) Pair paired_weights[kPair * kB / 2 * kB];  // [pairs of keys of both blocks, 32 queries]
#endif
};

// Elements of a key row that are multiplied at a time: between them the lines to fetch are chosen.
constexpr std::int64_t kKeyDepth = 16;

// weights [keys, 32] = key rows · query, and the largest of each column. `keys` is a multiple of kKeyRows; `dim` counts elements.
template <typename Element>
void multiply_keys(float* weights, const Element* key, std::ptrdiff_t key_step, const Element* query, std::int64_t dim, int keys,
                   Vec (&largest)[kQueryVecs], Fetchers& fetchers) {
  constexpr int N = 2;
  for (int j = 0; j < keys; j += kKeyRows) {
#pragma GCC unroll 4
    for (int q = 0; q < kQueryVecs; q += N) {
      Vec acc[kKeyRows][N] = {};
      for (std::int64_t d = 0; d < dim; d += kKeyDepth) {
        const std::int64_t depth = dim - d < kKeyDepth ? dim - d : kKeyDepth;
        multiply_tile<kKeyRows, N>(key + j * key_step + d, key_step, 1, query + d * kB + q * kLanes, kB, depth, acc,
                                   fetchers.even.take(), fetchers.odd.take());
      }
#pragma GCC unroll 16
      for (int r = 0; r < kKeyRows; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          store(weights + (j + r) * kB + (q + n) * kLanes, acc[r][n]);
          largest[q + n] = vmax(largest[q + n], acc[r][n]);
        }
    }
  }
}

#if !defined(__AVX512BF16__)
template <typename T>
const float* as_float(const T*) {
  return nullptr;
}
const float* as_float(const float* p) { return p; }
#endif

template <typename T>
void attend_block(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const Mra2CpuPlan& plan = *group.plan;
  const Mra2AttentionParams& params = plan.params;
  const std::int64_t index = group.first + static_cast<std::int64_t>(task) / plan.nb;  // example * num_heads + head
  const std::int64_t a = static_cast<std::int64_t>(task) % plan.nb;
  const std::int64_t example = index / params.num_heads;
  const std::int64_t hidden = params.hidden_size;
  const std::int64_t dim = plan.head_dim;
  const std::int64_t padded_dim = plan.padded_dim;
  // The element of this head at the example's first token.
  const std::int64_t origin = example * params.seq_len * hidden + index % params.num_heads * dim;
  const T* query_tensor = static_cast<const T*>(params.query) + origin;
  const T* query = query_tensor + a * kB * hidden;
  T* context_tensor = static_cast<T*>(params.context) + origin;
  T* context = context_tensor + a * kB * hidden;
  const std::int64_t slot = index - group.first;
#if defined(__AVX512BF16__)
  const Pair* paired_key = reinterpret_cast<const Pair*>(plan.reduced_key) + slot * plan.nb * kB * (dim / 2);
  const Pair* paired_value = reinterpret_cast<const Pair*>(plan.reduced_value) + slot * plan.nb * (kB / 2) * padded_dim;
#else
  const T* key = static_cast<const T*>(params.key) + origin;
  const T* value = static_cast<const T*>(params.value) + origin;
  const float* packed_key = plan.packed_key == nullptr ? nullptr : plan.packed_key + slot * plan.nb * kB * dim;
  const float* packed_value = plan.packed_value == nullptr ? nullptr : plan.packed_value + slot * plan.nb * kB * padded_dim;
#endif
  const std::uint32_t* token_bits = plan.token_bits + example * plan.nb;

  const std::int64_t tokens_left = params.seq_len - a * kB;
  const std::uint32_t bits = token_bits[a];
  clear_padding(context, hidden, dim, tokens_left, bits);
  if (bits == 0) return;

  AttendScratch scratch;
  int queries[kB];
  const int n_queries = list_bits(bits, queries);
  const float* query_rows = scratch.rows;
  if (plan.packed_query != nullptr)
    query_rows = plan.packed_query + (slot * plan.nb + a) * kB * dim;
  else
    for (int i = 0; i < n_queries; ++i) load_row(scratch.rows + i * dim, query + queries[i] * hidden, dim);
  const float scale = params.scale * kLog2E;
#if defined(__AVX512BF16__)
  // The logits are scaled, so that queries in bfloat16 stay what they are; but the largest of them is looked for before.
  const float after = scale > 0.0f ? scale : 1.0f;
  transpose_rows<kB>(scratch.query, query_rows, n_queries, dim, scale > 0.0f ? 1.0f : scale);
  for (std::int64_t d = 0; d < dim; d += 2)
    for (int q = 0; q < kB; q += kLanes)
      store(scratch.paired_query + d / 2 * kB + q,
            pair_up(load(scratch.query + d * kB + q), load(scratch.query + (d + 1) * kB + q)));
#else
  transpose_rows<kB>(scratch.query, query_rows, n_queries, dim, scale);
#endif

  OnlineSoftmax softmax(plan, index * plan.nb + a);
  begin_context(plan, index * plan.nb + a, scratch.context, padded_dim);

  const std::int32_t* starts = plan.row_starts + index * (plan.nb + 1);
  const std::int32_t* columns = plan.columns + index * plan.selected;
  const std::int32_t end = starts[a + 1];
#if defined(__AVX512BF16__)
  const std::int64_t key_elements = dim / 2;
#else
  const std::int64_t key_elements = dim;
#endif
  const std::int64_t key_tiles = kB / kKeyRows * (kQueryVecs / 2) * ((key_elements + kKeyDepth - 1) / kKeyDepth);
  const std::int64_t value_tiles = count_update_tiles(padded_dim);
  // Fetches the rows of block b of a tensor during one product. The last block of the sequence may be a part, and is left.
  const auto fetch_block = [&](const T* tensor, std::int64_t b, std::int64_t tiles, int portion) {
    if (b * kB + kB > params.seq_len) return Fetcher();
    const std::int64_t element = sizeof(T);
    return Fetcher(tensor + b * kB * hidden, hidden * element, dim * element, kB, tiles, portion);
  };
#if defined(__AVX512BF16__)
  const auto fetch_paired = [&](const Pair* paired, std::int64_t width, std::int64_t b, std::int64_t tiles, int portion) {
    const std::int64_t size = width * 2;  // bytes of a token
    return Fetcher(paired + b * kB * width / 2, size, size, kB, tiles, portion);
  };
  const auto fetch_key = [&](std::int64_t b, std::int64_t tiles, int portion) {
    return fetch_paired(paired_key, dim, b, tiles, portion);
  };
  const auto fetch_value = [&](std::int64_t b, std::int64_t tiles, int portion) {
    return fetch_paired(paired_value, padded_dim, b, tiles, portion);
  };
#else
  const auto fetch_packed = [&](const float* packed, std::int64_t step, std::int64_t b, std::int64_t tiles, int portion) {
    const std::int64_t size = step * static_cast<std::int64_t>(sizeof(float));
    return Fetcher(packed + b * kB * step, size, size, kB, tiles, portion);
  };
  const auto fetch_key = [&](std::int64_t b, std::int64_t tiles, int portion) {
    return packed_key != nullptr ? fetch_packed(packed_key, dim, b, tiles, portion) : fetch_block(key, b, tiles, portion);
  };
  const auto fetch_value = [&](std::int64_t b, std::int64_t tiles, int portion) {
    return packed_value != nullptr ? fetch_packed(packed_value, padded_dim, b, tiles, portion)
                                   : fetch_block(value, b, tiles, portion);
  };
#endif
  for (std::int32_t at = starts[a]; at < end; at += kPair) {
    const int blocks = end - at < kPair ? end - at : kPair;
    const bool last = at + blocks == end;
    Vec largest[kQueryVecs];
    for (int q = 0; q < kQueryVecs; ++q) largest[q] = broadcast(kLowest);
    int keys[kPair * kB];  // of each block, the numbers of its tokens
    int first_key[kPair + 1] = {0};
    for (int i = 0; i < blocks; ++i) {
      const std::int64_t b = columns[at + i];
      const int n = list_bits(token_bits[b], keys + first_key[i]);
      first_key[i + 1] = first_key[i] + n;
      const int rows = (n + kKeyRows - 1) / kKeyRows * kKeyRows;
#if defined(__AVX512BF16__)
      const Pair* key_rows = paired_key + b * kB * (dim / 2);
      const std::ptrdiff_t key_step = dim / 2;
#else
      const T* key_block = key + b * kB * hidden;
      const float* key_rows = as_float(key_block);
      std::ptrdiff_t key_step = hidden;
      if (packed_key != nullptr) {
        key_rows = packed_key + b * kB * dim;
        key_step = dim;
      } else if (key_rows == nullptr || n < kB) {
        for (int j = 0; j < n; ++j) load_row(scratch.rows + j * dim, key_block + keys[first_key[i] + j] * hidden, dim);
        // Padded keys give 0, and there are some if rows have to be filled up.
        std::memset(scratch.rows + n * dim, 0, static_cast<std::size_t>((rows - n) * dim) * sizeof(float));
        key_rows = scratch.rows;
        key_step = dim;
      }
#endif
      if (n < kB)
        for (int q = 0; q < kQueryVecs; ++q) largest[q] = vmax(largest[q], Vec{});
      Fetchers during_keys{fetch_value(b, key_tiles, kKeyDepth / 2), {}};
      if (i + 1 < blocks)
        during_keys.odd = fetch_key(columns[at + i + 1], key_tiles, kKeyDepth / 2);
      else if (last)
        during_keys.odd = fetch_block(context_tensor, a, key_tiles, kKeyDepth / 2);
#if defined(__AVX512BF16__)
      multiply_keys(scratch.weights + first_key[i] * kB, key_rows, key_step, scratch.paired_query, key_elements, rows, largest,
                    during_keys);
#else
      multiply_keys(scratch.weights + first_key[i] * kB, key_rows, key_step, scratch.query, dim, rows, largest, during_keys);
#endif
    }

#if defined(__AVX512BF16__)
    for (int q = 0; q < kQueryVecs; ++q) largest[q] *= after;
#endif
    for (int q = 0; q < kQueryVecs; ++q) largest[q] = vmax(broadcast(softmax.floor), largest[q]);
    softmax.raise(largest, scratch.correction);
#if defined(__AVX512BF16__)
    Right<Pair> values{{nullptr, nullptr}, {0, 0}, blocks, static_cast<std::ptrdiff_t>(padded_dim)};
    Pair* paired_weights = scratch.paired_weights;
    for (int i = 0; i < blocks; ++i) {
      values.rows[i] = paired_value + columns[at + i] * (kB / 2) * padded_dim;
      values.depth[i] = (first_key[i + 1] - first_key[i] + 1) / 2;
      for (int j = first_key[i]; j < first_key[i + 1]; j += 2, paired_weights += kB) {
        for (int q = 0; q < kQueryVecs; ++q) {
          const float* logits = scratch.weights + j * kB + q * kLanes;
          const Vec even = rough_exp2_nonpositive(load(logits) * after - softmax.maximum[q]);
          Vec odd = Vec{};
          if (j + 1 < first_key[i + 1]) odd = rough_exp2_nonpositive(load(logits + kB) * after - softmax.maximum[q]);
          store(paired_weights + q * kLanes, pair_up(even, odd));
          softmax.total[q] += even + odd;
        }
      }
    }
    const Pair* left = scratch.paired_weights;
#else
    Right<float> values{{scratch.value, nullptr}, {first_key[blocks], 0}, 1, static_cast<std::ptrdiff_t>(padded_dim)};
    if (packed_value != nullptr) values.parts = blocks;
    for (int i = 0; i < blocks; ++i) {
      const T* value_block = value + columns[at + i] * kB * hidden;
      if (packed_value != nullptr) {
        values.rows[i] = packed_value + columns[at + i] * kB * padded_dim;
        values.depth[i] = first_key[i + 1] - first_key[i];
      }
      for (int j = first_key[i]; j < first_key[i + 1]; ++j) {
        for (int q = 0; q < kQueryVecs; ++q) {
          const Vec weight = exp2_nonpositive(load(scratch.weights + j * kB + q * kLanes) - softmax.maximum[q]);
          store(scratch.weights + j * kB + q * kLanes, weight);
          softmax.total[q] += weight;
        }
        if (packed_value != nullptr) continue;
        float* to = scratch.value + j * padded_dim;
        load_row(to, value_block + keys[j] * hidden, dim);
        if (padded_dim != dim) std::memset(to + dim, 0, 32);
      }
    }
    const float* left = scratch.weights;
#endif

    // After the last block comes the next query block and its first key block, most often this thread's too.
    Fetchers during_values;
    const std::int64_t tiles = value_tiles * values.parts;
    const int portion = blocks * kB / 2 / values.parts;
    if (!last) {
      during_values.even = fetch_key(columns[at + blocks], tiles, portion);
    } else if (a + 1 < plan.nb) {
#if !defined(__AVX512BF16__)
      if (plan.packed_query != nullptr)
        during_values.even = fetch_packed(plan.packed_query + slot * plan.nb * kB * dim, dim, a + 1, tiles, portion);
      else
#endif
        during_values.even = fetch_block(query_tensor, a + 1, tiles, portion);
      if (starts[a + 2] > end) during_values.odd = fetch_key(columns[end], tiles, portion);
    }
    update_matrix(scratch.context, padded_dim, scratch.correction, left, 1, kB, values, (n_queries + 3) / 4 * 4, padded_dim,
                  &during_values);
  }
  if (starts[a] == end) softmax.raise_without_keys(scratch.context, n_queries, padded_dim, scratch.correction);
  softmax.write(context, hidden, queries, n_queries, scratch.context, padded_dim, dim, scratch.correction);
}

#endif

// ---------------------------------------------------------------------------------------------------------------------

template <typename T>
void run_typed(const Mra2CpuPlan& plan) {
  const std::int64_t tiles = count_select_tiles(plan);
  for (std::int64_t first = 0; first < plan.heads; first += plan.group_heads) {
    const std::int64_t left = plan.heads - first;
    const Group group{&plan, first, left < plan.group_heads ? left : plan.group_heads};
    const std::int64_t last_example = (first + group.count - 1) / plan.params.num_heads;
    const std::int64_t examples = last_example - first / plan.params.num_heads + 1;
    parallel_for(plan, pool_block<T>, &group, examples * plan.nb);
    if (tiles <= 2) {  // small heads: one task each, without waiting between the steps
      parallel_for(plan, do_head, &group, group.count);
    } else {
      parallel_for(plan, score_tile, &group, group.count * tiles);
      parallel_for(plan, select_head, &group, group.count);
      if (plan.params.approx_mode == static_cast<std::int64_t>(ApproxMode::kFull))
        parallel_for(plan, sum_tile, &group, group.count * tiles);
    }
#if defined(__AVX512FP16__)
    parallel_for(plan, attend_half<T>, &group, group.count * plan.nb);
#else
    parallel_for(plan, attend_block<T>, &group, group.count * plan.nb);
#endif
  }
}

}  // namespace

void run_mra2(const Mra2CpuPlan& plan) noexcept {
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
