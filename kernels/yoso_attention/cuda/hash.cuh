// Mode lsh, launch 1 of a group of heads: the hash codes of queries and keys, to the bit those of docs/operators/yoso_attention.md.
#pragma once

#include "yoso_attention/cuda/finish.cuh"

namespace mra::cuda {

constexpr int kHashThreads = 128;
constexpr int kHashWarps = kHashThreads / kWarp;

// How the hash kernel's shared memory is divided.
struct HashShape {
  int rows;            // tokens per thread block
  int row_stride;      // floats of a row
  int word_stride;     // words of a row's signs; odd, so that neighbouring rows lie in different banks
  int constant_words;  // sign masks of the fast hash, or 32 rows of the projection

  __host__ __device__ explicit HashShape(const YosoProblem& p) {
    rows = p.sign_words <= 256 ? 32 : 16;
    row_stride = (p.transform_dim > 0 ? p.transform_dim : p.head_dim) + 4;
    word_stride = p.sign_words | 1;
    constant_words = p.transform_dim > 0 ? 3 * p.sign_words : kWarp * row_stride;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(rows * (row_stride + word_stride) + constant_words) * 4; }
};

// Loads the block's rows into shared memory as floats, up to row_stride - 4 elements: zeros at padding, in rows that have NaN or an
// infinity (their codes are 0), and from head_dim on. For the projection they are rounded to the grid of integers.
template <typename T>
__device__ __forceinline__ void load_hash_rows(const YosoProblem& p, const HashShape& shape, const HeadPlace& place,
                                               const T* tensor, std::int64_t first_token, float* rows) {
  constexpr int kSize = Vector<T>::kSize;
  constexpr int kOwn = kMaxHeadDim / kSize / kWarp;  // vectors per lane
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int row = static_cast<int>(threadIdx.x) / kWarp; row < shape.rows; row += kHashWarps) {
    const std::int64_t token = first_token + row;
    const bool is_token = token < p.seq_len && p.mask[place.example * p.seq_len + token] != 0;
    float x[kOwn][kSize] = {};
    std::uint32_t largest = 0;  // magnitudes compare as their bits do, infinity and NaN highest
#pragma unroll
    for (int v = 0; v < kOwn; ++v) {
      const int channel = (v * kWarp + lane) * kSize;
      if (!is_token || channel >= p.head_dim) continue;
      Vector<T>::add(x[v], *reinterpret_cast<const uint4*>(tensor + place.origin + token * p.hidden + channel));
#pragma unroll
      for (int c = 0; c < kSize; ++c) largest = max(largest, __float_as_uint(x[v][c]) & 0x7fffffffu);
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    const int exponent =
        static_cast<int>(largest >> 23);  // biased; 0 below the normal numbers, where the scale is at its limit anyway
    const bool finite = exponent < 255;
    const float scale = finite ? __uint_as_float(static_cast<std::uint32_t>(min(136 - exponent, 127) + 127) << 23) : 0.0f;
#pragma unroll
    for (int v = 0; v < kOwn; ++v) {
      const int channel = (v * kWarp + lane) * kSize;
      if (channel >= shape.row_stride - 4) continue;
#pragma unroll
      for (int c = 0; c < kSize; ++c) {
        const float exact = finite ? x[v][c] : 0.0f;
        rows[row * shape.row_stride + channel + c] = p.transform_dim > 0 ? exact : rintf(exact * scale);
      }
    }
  }
}

// The signs of the fast hash. A group of transform_dim / 32 lanes transforms one row for one part, each lane 32 neighbouring elements.
__device__ __forceinline__ void transform_signs(const YosoProblem& p, const HashShape& shape, const float* rows,
                                                const std::uint32_t* masks, std::uint32_t* words) {
  const int lanes = p.transform_dim / kWarp;
  const int groups = kHashThreads / lanes;
  const int own = static_cast<int>(threadIdx.x) % lanes;
  const int items = shape.rows * p.parts;
  for (int first = 0; first < items; first += groups) {
    const int item = first + static_cast<int>(threadIdx.x) / lanes;
    const bool valid = item < items;  // the others compute along, for their warp's shuffles
    const int row = valid ? item % shape.rows : 0;
    const int part = valid ? item / shape.rows : 0;
    float x[kWarp];
#pragma unroll
    for (int i = 0; i < kWarp; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(rows + row * shape.row_stride + own * kWarp + i);
      x[i] = v.x;
      x[i + 1] = v.y;
      x[i + 2] = v.z;
      x[i + 3] = v.w;
    }
#pragma unroll 1
    for (int round = 0; round < 3; ++round) {
      const std::uint32_t mask = masks[(part * 3 + round) * lanes + own];
#pragma unroll
      for (int i = 0; i < kWarp; ++i) x[i] = __uint_as_float(__float_as_uint(x[i]) ^ (mask >> i & 1u) << 31);
      for (int stride = lanes / 2; stride > 0; stride /= 2) {
        const bool upper = (own & stride) != 0;
#pragma unroll
        for (int i = 0; i < kWarp; ++i) {
          const float other = __shfl_xor_sync(0xffffffffu, x[i], stride);
          x[i] = upper ? other - x[i] : x[i] + other;
        }
      }
#pragma unroll
      for (int stride = kWarp / 2; stride > 0; stride /= 2)
#pragma unroll
        for (int i = 0; i < kWarp; ++i)
          if ((i & stride) == 0) {
            const float low = x[i];
            x[i] = low + x[i + stride];
            x[i + stride] = low - x[i + stride];
          }
    }
    std::uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kWarp; ++i) word |= static_cast<std::uint32_t>(x[i] > 0.0f) << i;
    if (valid) words[row * shape.word_stride + part * lanes + own] = word;
  }
}

// The signs of the random projection: 32 at a time, a warp 8 of them, a lane one row. Integers below 2^24: exact in any order.
__device__ __forceinline__ void projection_signs(const YosoProblem& p, const HashShape& shape, const float* rows,
                                                 const std::int32_t* projections, float* tile, std::uint32_t* words) {
  constexpr int kBits = kWarp / kHashWarps;
  static_assert(kBits == 8, "a warp's signs are one byte");
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int hash_bits = p.num_hash * p.code_len;
  const float* own = rows + lane % shape.rows * shape.row_stride;
  for (int word = 0; word < p.sign_words; ++word) {
    for (int i = static_cast<int>(threadIdx.x); i < kWarp * p.head_dim; i += kHashThreads) {
      const int bit = i / p.head_dim;
      const int channel = i % p.head_dim;
      const int number = word * kWarp + bit;
      tile[bit * shape.row_stride + channel] =
          number < hash_bits ? static_cast<float>(projections[static_cast<std::int64_t>(number) * p.head_dim + channel]) : 0.0f;
    }
    __syncthreads();
    float sums[kBits] = {};
    for (int channel = 0; channel < p.head_dim; channel += 4) {
      const float4 x = *reinterpret_cast<const float4*>(own + channel);
#pragma unroll
      for (int b = 0; b < kBits; ++b) {
        const float4 r = *reinterpret_cast<const float4*>(tile + (warp * kBits + b) * shape.row_stride + channel);
        sums[b] = fmaf(x.x, r.x, sums[b]);
        sums[b] = fmaf(x.y, r.y, sums[b]);
        sums[b] = fmaf(x.z, r.z, sums[b]);
        sums[b] = fmaf(x.w, r.w, sums[b]);
      }
    }
    unsigned byte = 0;
#pragma unroll
    for (int b = 0; b < kBits; ++b) byte |= static_cast<unsigned>(sums[b] > 0.0f) << b;
    if (lane < shape.rows)
      reinterpret_cast<unsigned char*>(words + lane * shape.word_stride + word)[warp] = static_cast<unsigned char>(byte);
    __syncthreads();  // the tile is used up
  }
}

// Block (queries or keys, head of the group, tokens).
template <typename T>
__global__ void __launch_bounds__(kHashThreads) yoso_hash_kernel(YosoProblem p) {
  const HashShape shape(p);
  float* rows = reinterpret_cast<float*>(dynamic_shared());                                           // [rows, row_stride]
  std::uint32_t* constants = reinterpret_cast<std::uint32_t*>(rows + shape.rows * shape.row_stride);  // [constant_words]
  std::uint32_t* words = constants + shape.constant_words;                                            // [rows, word_stride]
  const int blocks_per_head = static_cast<int>(blocks_for(p.seq_len, shape.rows));
  const std::int64_t which = blockIdx.x / blocks_per_head;
  const std::int64_t first_token = (blockIdx.x - which * blocks_per_head) * static_cast<std::int64_t>(shape.rows);
  const bool keys = which >= p.group;
  const std::int64_t head = keys ? which - p.group : which;
  const HeadPlace place = place_of(p, p.first_head + head);
  load_hash_rows(p, shape, place, static_cast<const T*>(keys ? p.key : p.query), first_token, rows);

  if (p.transform_dim > 0) {
    const std::int32_t* signs = p.hash_constants + static_cast<std::int64_t>(place.number) * shape.constant_words * kWarp;
    for (int word = static_cast<int>(threadIdx.x) / kWarp; word < shape.constant_words; word += kHashWarps) {
      const std::uint32_t negative = __ballot_sync(0xffffffffu, signs[word * kWarp + threadIdx.x % kWarp] < 0);
      if (threadIdx.x % kWarp == 0) constants[word] = negative;
    }
    __syncthreads();
    transform_signs(p, shape, rows, constants, words);
  } else {
    const std::int32_t* projections =
        p.hash_constants + static_cast<std::int64_t>(place.number) * p.num_hash * p.code_len * p.head_dim;
    projection_signs(p, shape, rows, projections, reinterpret_cast<float*>(constants), words);
  }
  __syncthreads();

  std::uint16_t* codes = (keys ? p.codes[1] : p.codes[0]) + head * p.num_hash * p.seq_len;
  for (int i = static_cast<int>(threadIdx.x); i < shape.rows * p.num_hash; i += kHashThreads) {
    const int row = i % shape.rows;
    const int hash = i / shape.rows;
    if (first_token + row >= p.seq_len) continue;
    const std::uint32_t* own = words + row * shape.word_stride;
    unsigned code = 0;
    const int number = hash * p.code_len;
    if (p.transform_dim > 0) {
      int part = number % p.parts;
      int element = number / p.parts;
      for (int j = 0; j < p.code_len; ++j) {
        code |= (own[part * (p.transform_dim / kWarp) + element / kWarp] >> element % kWarp & 1u) << j;
        if (++part == p.parts) {
          part = 0;
          ++element;
        }
      }
    } else {
      for (int j = 0; j < p.code_len; ++j) code |= (own[(number + j) / kWarp] >> (number + j) % kWarp & 1u) << j;
    }
    codes[hash * p.seq_len + first_token + row] = static_cast<std::uint16_t>(code);
  }
}

}  // namespace mra::cuda
