// Mode lsh, launches 2 to 4 of a group of heads: key tokens in the order of their buckets, the buckets' sums, and their means.
//
// No sum depends on the order of execution: a bucket's values are added in an order that follows from its tokens alone.
#pragma once

#include "yoso_attention/cuda/finish.cuh"

namespace mra::cuda {

constexpr int kSumThreads = 256;
constexpr int kGatherThreads = 128;
constexpr int kSharedCursors = 1 << 13;  // counters of buckets that lie in shared memory
constexpr int kMostSortWarps = 16;

// Warps of a block of yoso_sort_kernel: as many as have counters of all buckets in shared memory.
__host__ __device__ inline int sort_warps(const YosoProblem& p) {
  const int warps = kSharedCursors / p.buckets;
  return warps < 1 ? 1 : warps > kMostSortWarps ? kMostSortWarps : warps;
}

inline std::size_t sort_shared_bytes(const YosoProblem& p) {
  return p.buckets <= kSharedCursors ? static_cast<std::size_t>(sort_warps(p)) * p.buckets * sizeof(std::uint32_t) : 0;
}

// Block (head of the group, hash): a counting sort that keeps the tokens of a bucket in their order. Each warp has a run of the tokens.
__global__ void __launch_bounds__(kMostSortWarps* kWarp) yoso_sort_kernel(YosoProblem p) {
  constexpr int kAhead = 4;  // codes that are loaded before the first of them is used
  const std::int64_t head = blockIdx.x / p.num_hash;
  const std::int32_t* mask = p.mask + place_of(p, p.first_head + head).example * p.seq_len;
  const std::uint16_t* codes = p.codes[1] + static_cast<std::int64_t>(blockIdx.x) * p.seq_len;
  std::uint32_t* order = p.order + static_cast<std::int64_t>(blockIdx.x) * p.seq_len;
  std::uint32_t* starts = p.starts + static_cast<std::int64_t>(blockIdx.x) * (p.buckets + 1);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = sort_warps(p);
  const bool in_shared = p.buckets <= kSharedCursors;
  // [warps, buckets]; a bucket's count in the warp's run, then where its next token goes, at last the end of the run's.
  std::uint32_t* all_cursors = in_shared ? reinterpret_cast<std::uint32_t*>(dynamic_shared()) : starts + 1;
  std::uint32_t* cursors = all_cursors + warp * p.buckets;
  // Those in global memory are read past the L1 cache: additions go to the L2, and the tables of other blocks share cache lines.
  const auto read = [&](const std::uint32_t* at) { return in_shared ? *at : load_coherent(at); };
  const std::int64_t run = blocks_for(blocks_for(p.seq_len, warps), kAhead * kWarp) * kAhead * kWarp;
  const std::int64_t begin = warp * run;
  const std::int64_t end = min(begin + run, p.seq_len);
  constexpr std::uint32_t kNone = 0xffffffffu;
  const auto bucket_of = [&](std::int64_t token) -> std::uint32_t {
    return token < end && mask[token] != 0 ? codes[token] : kNone;
  };

  for (int b = lane; b < p.buckets; b += kWarp) cursors[b] = 0;
  if (threadIdx.x == 0) starts[0] = 0;
  __syncwarp();
  for (std::int64_t token = begin + lane; token < end; token += kWarp) {
    const std::uint32_t bucket = bucket_of(token);
    if (bucket != kNone) atomicAdd(cursors + bucket, 1u);
  }
  __syncthreads();
  if (warp == 0) {
    std::uint32_t before = 0;
    for (int first = 0; first < p.buckets; first += kWarp) {
      const int bucket = first + lane;
      std::uint32_t count = 0;
      if (bucket < p.buckets)
        for (int w = 0; w < warps; ++w) count += read(all_cursors + w * p.buckets + bucket);
      std::uint32_t sum = count;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const std::uint32_t lower = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= offset) sum += lower;
      }
      std::uint32_t at = before + sum - count;
      if (bucket < p.buckets)
        for (int w = 0; w < warps; ++w) {
          std::uint32_t* cursor = all_cursors + w * p.buckets + bucket;
          const std::uint32_t in_run = read(cursor);
          *cursor = at;
          at += in_run;
        }
      before += __shfl_sync(0xffffffffu, sum, kWarp - 1);
    }
  }
  __syncthreads();
  for (std::int64_t first = begin; first < end; first += kAhead * kWarp) {
    std::uint32_t buckets[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) buckets[i] = bucket_of(first + i * kWarp + lane);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const unsigned peers = __match_any_sync(0xffffffffu, buckets[i]);
      const int rank = __popc(peers & ((1u << lane) - 1));
      const bool valid = buckets[i] != kNone;
      const std::uint32_t at = valid ? read(cursors + buckets[i]) : 0;
      __syncwarp();
      if (valid && rank == 0) cursors[buckets[i]] = at + static_cast<std::uint32_t>(__popc(peers));
      __syncwarp();
      if (valid) order[at + static_cast<std::uint32_t>(rank)] = static_cast<std::uint32_t>(first + i * kWarp + lane);
    }
  }
  if (!in_shared) return;
  __syncthreads();
  const std::uint32_t* last = all_cursors + (warps - 1) * p.buckets;  // the last run ends where the bucket does
  for (int b = static_cast<int>(threadIdx.x); b < p.buckets; b += warps * kWarp) starts[1 + b] = last[b];
}

// A warp (head of the group, hash, row of its table) sums a bucket's values: as many at a time as rows of values fit the warp.
template <typename T>
__global__ void __launch_bounds__(kSumThreads) yoso_sum_kernel(YosoProblem p) {
  constexpr int kSize = Vector<T>::kSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kSumThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= p.group * p.num_hash * p.table_rows) return;
  const std::int64_t hash = row / p.table_rows;  // of all heads
  std::uint32_t bucket = static_cast<std::uint32_t>(row - hash * p.table_rows);
  const std::uint32_t* starts = p.starts + hash * (p.buckets + 1);
  const std::uint32_t* order = p.order + hash * p.seq_len;
  if (!one_row_per_bucket(p)) {
    const std::uint32_t first = bucket;
    if (first >= starts[p.buckets]) return;
    bucket = p.codes[1][hash * p.seq_len + order[first]];
    if (starts[bucket] != first) return;
  }
  const std::uint32_t begin = starts[bucket];
  const std::uint32_t end = starts[bucket + 1];
  const T* value = static_cast<const T*>(p.value) + place_of(p, p.first_head + hash / p.num_hash).origin;
  float* target = p.table + row * p.head_dim;

  const int vectors = p.head_dim / kSize;
  const int lanes = vectors < kWarp ? vectors : kWarp;  // for one row of values
  const int at_once = kWarp / lanes;
  const int part = lane / lanes;
  for (int first = 0; first < vectors; first += kWarp) {
    const int channel = (first + lane % lanes) * kSize;
    const bool valid = part < at_once && channel < p.head_dim;
    float sum[kSize] = {};
    if (valid) {
#pragma unroll 4
      for (std::uint32_t i = begin + static_cast<std::uint32_t>(part); i < end; i += static_cast<std::uint32_t>(at_once))
        Vector<T>::add(sum, *reinterpret_cast<const uint4*>(value + static_cast<std::int64_t>(order[i]) * p.hidden + channel));
    }
    for (int other = 1; other < at_once; ++other)
#pragma unroll
      for (int c = 0; c < kSize; ++c) {
        const float its = __shfl_sync(0xffffffffu, sum[c], lane + other * lanes);
        if (part == 0) sum[c] += its;
      }
    if (valid && part == 0) {
#pragma unroll
      for (int c = 0; c < kSize; c += 4)
        *reinterpret_cast<float4*>(target + channel + c) = make_float4(sum[c], sum[c + 1], sum[c + 2], sum[c + 3]);
    }
  }
}

inline std::size_t gather_shared_bytes(const YosoProblem& p) {
  return kWarp * static_cast<std::size_t>(1 + p.head_dim + 4) * sizeof(float);
}

// Block (head of the group, 32 tokens): the mean over the hashes, hash by hash, of the queries' buckets; then steps 5 to 7.
template <typename T>
__global__ void __launch_bounds__(kGatherThreads) yoso_gather_kernel(YosoProblem p) {
  float* factors = reinterpret_cast<float*>(dynamic_shared());  // [32]
  float* totals = factors + kWarp;                              // [32, stride]
  const int stride = p.head_dim + 4;
  const std::int64_t head = blockIdx.x / p.tiles;
  const std::int64_t first_token = (blockIdx.x - head * p.tiles) * kWarp;
  const HeadPlace place = place_of(p, p.first_head + head);
  const std::uint16_t* codes = p.codes[0] + head * p.num_hash * p.seq_len;
  const std::uint32_t* starts = p.starts + head * p.num_hash * (p.buckets + 1);
  const float* table = p.table + head * p.num_hash * p.table_rows * p.head_dim;
  const bool dense = one_row_per_bucket(p);
  const int vectors = p.head_dim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kWarp * vectors; i += kGatherThreads) {
    const int row = i / vectors;
    const int channel = i % vectors * 4;
    const std::int64_t token = first_token + row;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (token < p.seq_len && p.mask[place.example * p.seq_len + token] != 0) {
#pragma unroll 4
      for (int hash = 0; hash < p.num_hash; ++hash) {
        std::uint32_t at = codes[hash * p.seq_len + token];
        if (!dense) {
          const std::uint32_t* own = starts + hash * (std::int64_t{p.buckets} + 1) + at;
          at = own[0];
          if (at == own[1]) continue;
        }
        const float4 v =
            *reinterpret_cast<const float4*>(table + (static_cast<std::int64_t>(hash) * p.table_rows + at) * p.head_dim + channel);
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
      }
    }
    const float count = static_cast<float>(p.num_hash);
    *reinterpret_cast<float4*>(totals + row * stride + channel) =
        make_float4(sum.x / count, sum.y / count, sum.z / count, sum.w / count);
  }
  finish_rows<T, kGatherThreads>(p, place, first_token, kWarp, totals, stride, factors);
}

}  // namespace mra::cuda
