// MRA's CPU operator, stage 3, with products in float16 (AVX512-FP16): twice as many a cycle as in float32. Included by
// mra2_attention_cpu_kernels.cc inside its namespaces.
//
// Sums are float16 over at most 64 terms and float32 beyond; the softmax is float32.

// acc[r] += Σ_k a[r * row_step + k * k_step] * b[k].
template <int row_step, int k_step>
MRA_INLINE void multiply_halves(const Half* a, const Half* b, std::int64_t depth, HalfVec (&acc)[kHalfRows], Fetch even,
                                Fetch odd) {
  const auto add = [&](const Half* left, const Half* right_row) __attribute__((always_inline)) {
    const HalfVec right = load(right_row);
#pragma GCC unroll 16
    for (int r = 0; r < kHalfRows; ++r)  // the compiler would spend an instruction on each broadcast
      asm("vfmadd231ph %2%{1to32%}, %1, %0" : "+v"(acc[r]) : "v"(right), "m"(left[r * row_step]));
  };
  std::int64_t k = 0;
  for (; k + 2 <= depth; k += 2) {
    prefetch(even);
    add(a, b);
    prefetch(odd);
    add(a + k_step, b + kHalfLanes);
    a += 2 * k_step;
    b += 2 * kHalfLanes;
  }
  if (k < depth) add(a, b);
}

// logits [keys, 32] = key rows · query, and the largest of each column. The rows that fill up a tile are written too.
void multiply_half_keys(float* logits, const Half* key, const Half* query, std::int64_t dim, int keys, Vec (&largest)[kQueryVecs],
                        Fetchers& fetchers) {
  for (int j = 0; j < keys; j += kHalfRows) {
    for (std::int64_t d = 0; d < dim;) {
      HalfVec acc[kHalfRows] = {};
      const bool first = d == 0;
      for (int c = 0; c < kChunkSum && d < dim; ++c, d += kChunk)
        multiply_halves<kChunk, 1>(key + (d + j) * kChunk, query + d * kHalfLanes, dim - d < kChunk ? dim - d : kChunk, acc,
                                   fetchers.even.take(), fetchers.odd.take());
#pragma GCC unroll 16
      for (int r = 0; r < kHalfRows; ++r) {
        float* to = logits + (j + r) * kB;
        Vec low = low_floats(acc[r]), high = high_floats(acc[r]);
        if (!first) low += load(to), high += load(to + kLanes);
        store(to, low);
        store(to + kLanes, high);
        if (d >= dim && j + r < keys) largest[0] = vmax(largest[0], low), largest[1] = vmax(largest[1], high);
      }
    }
  }
}

// to [32, 32] = from [32, 32] transposed, with the bits of `flip` changed.
MRA_INLINE void transpose_halves(Half* to, const Half* from, std::uint16_t flip) {
  using Words = std::uint16_t __attribute__((vector_size(64)));
  __m512i parts[4][8];  // of eight rows each: in lane l of number c the column 8 l + c
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    __m512i r[8], s[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = (__m512i)((Words)load(from + (8 * g + i) * kHalfLanes) ^ flip);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) s[i] = _mm512_unpacklo_epi16(r[i], r[i + 1]), s[i + 1] = _mm512_unpackhi_epi16(r[i], r[i + 1]);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 4)
      for (int c = 0; c < 2; ++c)
        r[i + 2 * c] = _mm512_unpacklo_epi32(s[i + c], s[i + c + 2]),
                  r[i + 2 * c + 1] = _mm512_unpackhi_epi32(s[i + c], s[i + c + 2]);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c)
      parts[g][2 * c] = _mm512_unpacklo_epi64(r[c], r[c + 4]), parts[g][2 * c + 1] = _mm512_unpackhi_epi64(r[c], r[c + 4]);
  }
#pragma GCC unroll 8
  for (int c = 0; c < 8; ++c) {
    const __m512i even01 = _mm512_shuffle_i32x4(parts[0][c], parts[1][c], 0x88);  // lanes 0 and 2 of each
    const __m512i even23 = _mm512_shuffle_i32x4(parts[2][c], parts[3][c], 0x88);
    const __m512i odd01 = _mm512_shuffle_i32x4(parts[0][c], parts[1][c], 0xdd);
    const __m512i odd23 = _mm512_shuffle_i32x4(parts[2][c], parts[3][c], 0xdd);
    const __m512i lanes[4] = {_mm512_shuffle_i32x4(even01, even23, 0x88), _mm512_shuffle_i32x4(odd01, odd23, 0x88),
                              _mm512_shuffle_i32x4(even01, even23, 0xdd), _mm512_shuffle_i32x4(odd01, odd23, 0xdd)};
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) std::memcpy(to + (8 * l + c) * kHalfLanes, &lanes[l], sizeof(lanes[l]));
  }
}

// One task's working memory, on its stack: 82 KiB, of which it touches what head_dim needs.
struct HalfScratch {
  alignas(64) Half query[kMaxHeadDim * kB];     // [head_dim, 32 queries]
  alignas(64) float logits[kPair * kB * kB];    // [keys of both blocks, 32 queries]
  alignas(64) Half weights[kPair * kB * kB];    // the same, e^(G - the largest of them)
  alignas(64) float context[kB * kMaxHeadDim];  // [32 queries, padded to chunks]
  alignas(64) float correction[kB];             // [32 queries]: of the context so far
  alignas(64) float factor[kB];                 // [32 queries]: of what is added to it
};

template <typename T>
void attend_half(void* argument, std::size_t task) {
  const Group& group = *static_cast<const Group*>(argument);
  const Mra2CpuPlan& plan = *group.plan;
  const Mra2AttentionParams& params = plan.params;
  const std::int64_t slot = static_cast<std::int64_t>(task) / plan.nb;
  const std::int64_t index = group.first + slot;  // example * num_heads + head
  const std::int64_t a = static_cast<std::int64_t>(task) % plan.nb;
  const std::int64_t example = index / params.num_heads;
  const std::int64_t hidden = params.hidden_size;
  const std::int64_t dim = plan.head_dim, chunks = count_chunks(dim), width = chunks * kChunk;
  const std::int64_t origin = (example * params.seq_len + a * kB) * hidden + index % params.num_heads * dim;
  const Half* packed_query = reinterpret_cast<const Half*>(plan.reduced_query) + (slot * plan.nb + a) * kB * width;
  T* context = static_cast<T*>(params.context) + origin;
  const Half* keys = reinterpret_cast<const Half*>(plan.reduced_key) + slot * plan.nb * kB * width;
  const Half* values = reinterpret_cast<const Half*>(plan.reduced_value) + slot * plan.nb * kB * width;
  const float* key_scales = plan.key_scales + slot * plan.nb;
  const float* value_scales = plan.value_scales + slot * plan.nb;
  const std::uint32_t* token_bits = plan.token_bits + example * plan.nb;

  const std::int64_t tokens_left = params.seq_len - a * kB;
  const std::uint32_t bits = token_bits[a];
  clear_padding(context, hidden, dim, tokens_left, bits);
  if (bits == 0) return;

  HalfScratch scratch;
  int queries[kB];
  const int n_queries = list_bits(bits, queries);
  for (std::int64_t d = 0; d < width; d += kChunk)
    transpose_halves(scratch.query + d * kB, packed_query + d * kB, params.scale < 0.0f ? 0x8000 : 0);
  // The sign of the scale is the query's by now: the largest logit is looked for before they are scaled.
  const float query_scale = plan.query_scales[slot * plan.nb + a] * __builtin_fabsf(params.scale) * kLog2E;

  OnlineSoftmax softmax(plan, index * plan.nb + a);
  begin_context(plan, index * plan.nb + a, scratch.context, width);

  const std::int32_t* starts = plan.row_starts + index * (plan.nb + 1);
  const std::int32_t* columns = plan.columns + index * plan.selected;
  const std::int32_t end = starts[a + 1];
  constexpr int kPortion = kChunk / 2;  // lines that are fetched during a tile, in either turn
  const std::int64_t key_tiles = kB / kHalfRows * chunks;
  const auto fetch_block = [&](const Half* packed, std::int64_t b, std::int64_t tiles) {
    const std::int64_t size = width * static_cast<std::int64_t>(sizeof(Half));
    return Fetcher(packed + b * kB * width, size, size, kB, tiles, kPortion);
  };
  // The context's rows lie far apart, and are many for one product: they are fetched in two halves.
  const auto fetch_context = [&](int half) {
    if (tokens_left < kB) return Fetcher();
    const std::int64_t element = sizeof(T);
    return Fetcher(context + half * (kB / 2) * hidden, hidden * element, dim * element, kB / 2, key_tiles, kPortion);
  };
  for (std::int32_t at = starts[a]; at < end; at += kPair) {
    const int blocks = end - at < kPair ? end - at : kPair;
    const bool last = at + blocks == end;
    Vec largest[kQueryVecs], candidate[kQueryVecs];  // of the keys of both blocks, and of what else enters the maximum
    for (int q = 0; q < kQueryVecs; ++q) {
      largest[q] = broadcast(-__builtin_inff());
      candidate[q] = broadcast(softmax.floor);
    }
    int first_key[kPair + 1] = {0};
    float after[kPair], value_scale = 0.0f;
    for (int i = 0; i < blocks; ++i) {
      const std::int64_t b = columns[at + i];
      const int n = __builtin_popcount(token_bits[b]);
      first_key[i + 1] = first_key[i] + n;
      after[i] = query_scale * key_scales[b];
      value_scale = value_scales[b] > value_scale ? value_scales[b] : value_scale;
      Fetchers during_keys{fetch_block(values, b, key_tiles), {}};
      if (i + 1 < blocks)
        during_keys.odd = fetch_block(keys, columns[at + i + 1], key_tiles);
      else if (at == starts[a])
        during_keys.odd = fetch_context(0);
      Vec of_block[kQueryVecs];
      for (int q = 0; q < kQueryVecs; ++q) of_block[q] = broadcast(-__builtin_inff());
      multiply_half_keys(scratch.logits + first_key[i] * kB, keys + b * kB * width, scratch.query, dim, n, of_block, during_keys);
      for (int q = 0; q < kQueryVecs; ++q) {
        largest[q] = vmax(largest[q], of_block[q] * after[i]);
        if (n < kB) candidate[q] = vmax(candidate[q], Vec{});
      }
    }
    for (int q = 0; q < kQueryVecs; ++q) candidate[q] = vmax(candidate[q], largest[q]);
    softmax.raise(candidate, scratch.correction);
    // Weights are those to the largest of these keys, and 1 for that one: the maximum may be too far above for float16.
    Vec total[kQueryVecs] = {};
    for (int i = 0; i < blocks; ++i) {
      // Values of both blocks have one scale: the weights make up for what is missing.
      const float factor = value_scales[columns[at + i]] / value_scale;
      for (int j = first_key[i]; j < first_key[i + 1]; ++j) {
        Vec weight[kQueryVecs];
        for (int q = 0; q < kQueryVecs; ++q) {
          weight[q] = rough_exp2_nonpositive(load(scratch.logits + j * kB + q * kLanes) * after[i] - largest[q]);
          total[q] += weight[q];
        }
        const HalfVec halves = to_half(weight[0] * factor, weight[1] * factor);
        std::memcpy(scratch.weights + j * kB, &halves, sizeof(halves));
      }
    }

    for (int q = 0; q < kQueryVecs; ++q) {
      const Vec factor = exp2_nonpositive(largest[q] - softmax.maximum[q]);
      softmax.total[q] += total[q] * factor;
      store(scratch.factor + q * kLanes, factor * value_scale);
    }

    // After the last block comes the next query block's first key block, most often this thread's too.
    Fetchers during_values;
    const std::int64_t tiles = kB / kHalfRows * chunks * blocks;
    if (!last || (a + 1 < plan.nb && starts[a + 2] > end)) during_values.even = fetch_block(keys, columns[at + blocks], tiles);
    if (last) during_values.odd = fetch_context(1);
    for (int row = 0; row < n_queries; row += kHalfRows)
      for (std::int64_t d = 0; d < width; d += kChunk) {
        HalfVec acc[kHalfRows] = {};
        for (int i = 0; i < blocks; ++i)
          multiply_halves<1, kB>(scratch.weights + first_key[i] * kB + row, values + (columns[at + i] * width + d) * kB,
                                 first_key[i + 1] - first_key[i], acc, during_values.even.take(), during_values.odd.take());
#pragma GCC unroll 16
        for (int r = 0; r < kHalfRows; ++r) {
          float* to = scratch.context + (row + r) * width + d;
          const float correction = scratch.correction[row + r], factor = scratch.factor[row + r];
          store(to, load(to) * correction + low_floats(acc[r]) * factor);
          store(to + kLanes, load(to + kLanes) * correction + high_floats(acc[r]) * factor);
        }
      }
  }
  if (starts[a] == end) softmax.raise_without_keys(scratch.context, n_queries, width, scratch.correction);
  softmax.write(context, hidden, queries, n_queries, scratch.context, width, dim, scratch.correction);
}
