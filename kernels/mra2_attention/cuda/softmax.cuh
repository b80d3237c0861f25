// What the attention kernels share (steps 8-12): the place of a chunk, the softmax's final shift, and the combination of chunks.
#pragma once

#include "common/cuda/arrival.cuh"
#include "common/cuda/tile.cuh"
#include "mra2_attention/cuda/problem.cuh"

namespace mra::cuda {

// Where a thread block works: its chunk and the tensors' offsets. False if there is no such chunk.
struct ChunkWork {
  Chunk chunk;
  std::int64_t head;  // batch * num_heads + head
  std::int64_t example;
  std::int64_t origin;        // element offset of (example, token 0, head, channel 0)
  const std::uint32_t* bits;  // [nb]
  const std::uint16_t* list;  // [chunk.length]

  __device__ __forceinline__ bool find(const Mra2Problem& p) {
    const uint4 words = *reinterpret_cast<const uint4*>(p.chunks + blockIdx.x);  // by name, lest it become several loads
    chunk.row = static_cast<std::uint16_t>(words.x);
    chunk.begin = static_cast<std::uint16_t>(words.x >> 16);
    chunk.length = static_cast<std::uint16_t>(words.y);
    chunk.parts = static_cast<std::uint16_t>(words.y >> 16);
    chunk.slot = static_cast<std::int32_t>(words.z);
    chunk.bits = words.w;
    if (chunk.parts == 0) return false;
    head = blockIdx.x / static_cast<unsigned>(p.chunk_bound);
    example = head / p.num_heads;
    origin = example * p.seq_len * p.hidden + (head - example * p.num_heads) * p.head_dim;
    bits = p.token_bits + example * p.nb;
    list = p.lists + (head * p.nb + chunk.row) * p.list_stride + chunk.begin;
    return true;
  }

  // The tokens of a list's entry.
  __device__ __forceinline__ std::uint32_t bits_of(std::uint16_t entry) const {
    return (entry & kFullBlock) != 0 ? 0xffffffffu : bits[entry & kBlockNumber];
  }
  // Where the chunk's partial result lies.
  __device__ __forceinline__ std::int64_t slot(const Mra2Problem& p) const {
    return head * p.slots + chunk.slot + chunk.begin / p.chunk_tiles;
  }
};

// Base-e and base-2 arithmetic of the softmax: float32 wants expf, half types the hardware's exponential.
struct NaturalExponent {
  static constexpr float kLog = 1.0f;
  static __device__ __forceinline__ float exp(float x) { return expf(x); }
};
struct BinaryExponent {
  static constexpr float kLog = 1.4426950408889634f;  // log2(e): logits are held times this
  static __device__ __forceinline__ float exp(float x) { return exp2_fast(x); }
};

// Where a running maximum starts: below any logit, and finite, so that it can be subtracted from itself.
constexpr float kLowest = -1e30f;

// Steps 9 and 11 for one query: context = high_sum * high + low_sum * low, the denominator included.
struct FinalFactors {
  float high;
  float low;
};

// `max` and `weight` are those of the included keys, in units of Exponent; `padded` says whether a selected block holds padding, whose
// logits of 0 belong to the shift although nothing else of them counts. Summing relative to `max` keeps half types from underflow.
template <typename Exponent>
__device__ __forceinline__ FinalFactors final_factors(const Mra2Problem& p, float row_max, float low_weight, float max,
                                                      float weight, bool padded, bool none_selected) {
  const float high_max = none_selected ? kNoBlockMax * Exponent::kLog : padded ? fmaxf(max, 0.0f) : max;
  if (p.sparse) {
    const float high = Exponent::exp(max - high_max);
    return {high / (weight * high + kNormalizerEpsilon), 0.0f};
  }
  const float row = row_max * Exponent::kLog;
  const float shift = fmaxf(row, high_max);
  const float high = Exponent::exp(max - shift);
  const float low = Exponent::exp(row - shift);
  const float inverse = 1.0f / (weight * high + low_weight * low + kNormalizerEpsilon);
  return {high * inverse, low * inverse};
}

// Of the chunks of a row, the one that arrives last combines all, in the order of the list.
template <typename T, typename Exponent, int kThreads>
__device__ __forceinline__ void combine_chunks(const Mra2Problem& p, const ChunkWork& work, std::uint32_t* shared_flag) {
  const std::int64_t row = work.head * p.nb + work.chunk.row;
  if (!arrives_last(p.row_arrivals + row, work.chunk.parts, shared_flag)) return;

  const std::int64_t slot0 = work.head * p.slots + work.chunk.slot;
  const float row_max = p.row_max[row];
  const float low_weight = p.sparse ? 0.0f : p.low_weight[row];
  const int vectors = p.head_dim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kBlockSize * vectors; i += kThreads) {
    const int token = i / vectors;
    const int channel = i % vectors * 4;
    const std::int64_t position = static_cast<std::int64_t>(work.chunk.row) * kBlockSize + token;
    if (position >= p.seq_len) continue;
    float4 result = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if ((work.chunk.bits >> token & 1u) != 0) {
      float max = kLowest;
      bool padded = false;
      for (int part = 0; part < work.chunk.parts; ++part) {
        max = fmaxf(max, load_coherent(p.partial_max + (slot0 + part) * kBlockSize + token));
        padded |= load_coherent(p.partial_padded + slot0 + part) != 0;
      }
      float weight = 0.0f;
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      for (int part = 0; part < work.chunk.parts; ++part) {
        const std::int64_t at = (slot0 + part) * kBlockSize + token;
        const float factor = Exponent::exp(load_coherent(p.partial_max + at) - max);
        const float4 v = load_coherent(reinterpret_cast<const float4*>(p.partial_sum + at * p.head_dim + channel));
        weight = fmaf(factor, load_coherent(p.partial_weight + at), weight);
        sum.x = fmaf(factor, v.x, sum.x);
        sum.y = fmaf(factor, v.y, sum.y);
        sum.z = fmaf(factor, v.z, sum.z);
        sum.w = fmaf(factor, v.w, sum.w);
      }
      const FinalFactors f = final_factors<Exponent>(p, row_max, low_weight, max, weight, padded, false);
      float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (!p.sparse) low = *reinterpret_cast<const float4*>(p.low_sum + row * p.head_dim + channel);
      result = make_float4(sum.x * f.high + low.x * f.low, sum.y * f.high + low.y * f.low, sum.z * f.high + low.z * f.low,
                           sum.w * f.high + low.w * f.low);
    }
    store4(static_cast<T*>(p.context) + work.origin + position * p.hidden + channel, result);
  }
}

}  // namespace mra::cuda
