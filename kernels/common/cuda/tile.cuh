// Tiles of 32 rows, and the vectors of 16 bytes that rows are read and written in.
#pragma once

#include "common/cuda/device.cuh"

namespace mra::cuda {

// A tile of queries in plain float32: four warps of 8 rows.
constexpr int kFfmaThreads = 4 * kWarp;
constexpr int kFfmaRows = 8;

// Starts copying 32 rows of head_dim elements into shared memory [32, kStride]; zeros at padded tokens and from head_dim to kDim.
template <typename T, int kDim, int kStride, int kThreads, typename AnyProblem>
__device__ __forceinline__ void load_tile(T* shared, const T* tensor, int block, std::uint32_t token_bits, const AnyProblem& p) {
  constexpr int kSize = 16 / sizeof(T);
  constexpr int kVectors = kDim / kSize;
  constexpr int kRows = kThreads / kVectors;  // per step
  static_assert(kThreads % kVectors == 0 && kWarp % kRows == 0);
  const int row0 = static_cast<int>(threadIdx.x / kVectors);
  const int channel = static_cast<int>(threadIdx.x % kVectors) * kSize;
  const std::uint32_t rows = channel < p.head_dim ? token_bits >> row0 : 0u;
  // Where a copy is not valid its address may lie outside the tensor: nothing is read from it.
  const T* source = tensor + (static_cast<std::int64_t>(block) * kWarp + row0) * p.hidden + channel;
  const int step = kRows * p.hidden;
#pragma unroll
  for (int i = 0; i < kWarp / kRows; ++i, source += step)
    copy_async_16(shared + (row0 + i * kRows) * kStride + channel, source, (rows >> i * kRows & 1u) != 0);
}

// 16 bytes of T as floats.
template <typename T>
struct Vector;

template <>
struct Vector<float> {
  static constexpr int kSize = 4;
  __device__ static void add(float (&sum)[kSize], const uint4& raw) {
    sum[0] += __uint_as_float(raw.x);
    sum[1] += __uint_as_float(raw.y);
    sum[2] += __uint_as_float(raw.z);
    sum[3] += __uint_as_float(raw.w);
  }
};

__device__ __forceinline__ float2 unpack(std::uint32_t raw, __half) {
  return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(raw & 0xffffu))),
                     __half2float(__ushort_as_half(static_cast<unsigned short>(raw >> 16))));
}
__device__ __forceinline__ float2 unpack(std::uint32_t raw, __nv_bfloat16) {
  return make_float2(__uint_as_float(raw << 16), __uint_as_float(raw & 0xffff0000u));
}

template <typename T>
struct Vector {
  static constexpr int kSize = 8;
  __device__ static void add(float (&sum)[kSize], const uint4& raw) {
    const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack(words[i], T{});
      sum[2 * i] += pair.x;
      sum[2 * i + 1] += pair.y;
    }
  }
};

// Two floats as T, low half first.
template <typename T>
__device__ __forceinline__ std::uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ std::uint32_t pack<__half>(float low, float high) {
  return static_cast<std::uint32_t>(__half_as_ushort(__float2half_rn(high))) << 16 | __half_as_ushort(__float2half_rn(low));
}
template <>
__device__ __forceinline__ std::uint32_t pack<__nv_bfloat16>(float low, float high) {
  return static_cast<std::uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16 |
         __bfloat16_as_ushort(__float2bfloat16_rn(low));
}

__device__ __forceinline__ void store4(float* target, float4 v) { *reinterpret_cast<float4*>(target) = v; }
template <typename T>
__device__ __forceinline__ void store4(T* target, float4 v) {
  *reinterpret_cast<uint2*>(target) = make_uint2(pack<T>(v.x, v.y), pack<T>(v.z, v.w));
}

}  // namespace mra::cuda
