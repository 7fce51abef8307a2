// Tiles of keys and values brought into the order the products want, and the one product.
//
// A "word" is 32 bits: one float32, or (with bf16 dot products) two neighbouring bf16. Then
// scores = Q . K^T and outputs = P . V are the same product of words: rows of A broadcast against
// rows of B, 16 lanes at a time, float32 sums.
#pragma once

#include <type_traits>

#include "quant.h"
#include "vec.h"

constexpr int kTile = 64;  // keys a tile holds; a multiple of 2 * kLanes
constexpr int kRows = 6;   // rows of A a product keeps in registers
constexpr int kCols = 4;   // vectors of B a product keeps in registers

template <class E>
constexpr bool kPairs = false;
#if BLOCKS_BF16_DOT
template <>
constexpr bool kPairs<bf16> = true;
#endif
template <class E>
constexpr int kPerWord = kPairs<E> ? 2 : 1;

// Lines of memory that will be needed soon, fetched a few at a time between other work: in a burst
// they would be dropped, or waited for with nothing else to do.
struct Ahead {
  const char *const *row = nullptr, *const *end = nullptr;
  int64_t start = 0, at = 0, stop = 0;  // bytes of a row

  inline void fetch(int lines) {
    for (; lines > 0 && row < end; --lines) {
      __builtin_prefetch(*row + at, 0, 3);
      asm volatile("");  // gcc drops calls to a function that does nothing but prefetch
      at += 64;
      if (at >= stop) {
        at = start;
        ++row;
      }
    }
  }
};

static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

template <bool PAIRS>
static inline V dot_step(V acc, V a, V b) {
#if BLOCKS_BF16_DOT
  if (PAIRS) return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#endif
  return vfma(a, b, acc);
}

// c[ROWS][COLS * 16] = (keep ? c : 0) + a[ROWS][steps] . b[steps][COLS * 16], in words.
template <bool PAIRS, int ROWS, int COLS>
static void product(const float* a, long lda, const float* b, long ldb, int steps, float* c,
                    long ldc, bool keep, Ahead& ahead) {
  V acc[ROWS][COLS];
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < COLS; ++j) acc[r][j] = keep ? vload(c + r * ldc + j * kLanes) : V{};
  for (int s = 0; s < steps; ++s) {
    ahead.fetch(2);
    V row[COLS];
    for (int j = 0; j < COLS; ++j) row[j] = vload(b + s * ldb + j * kLanes);
    for (int r = 0; r < ROWS; ++r) {
      const V word = vset(a[r * lda + s]);
      for (int j = 0; j < COLS; ++j) acc[r][j] = dot_step<PAIRS>(acc[r][j], word, row[j]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < COLS; ++j) vstore(c + r * ldc + j * kLanes, acc[r][j]);
}

typedef void (*Product)(const float*, long, const float*, long, int, float*, long, bool,
                        Ahead&);

template <bool PAIRS>
static inline Product product_of(int rows, int cols) {
#define ROW(R) {product<PAIRS, R, 1>, product<PAIRS, R, 2>, product<PAIRS, R, 3>, product<PAIRS, R, 4>}
  static const Product table[kRows][kCols] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};
#undef ROW
  return table[rows - 1][cols - 1];
}

// Sixteen words of E from a row of stored elements C: of E itself, or quantised.
template <class E, class C>
static inline V load_words(const C* p) {
#if BLOCKS_AVX512
  if constexpr (sizeof(C) == 1) {
#if BLOCKS_BF16_DOT
    if constexpr (kPairs<E>) return pairs_of(p, 0xffffffffu);
#endif
    return lanes_of(p, 0xffff);
  }
  if constexpr (kPairs<E> || sizeof(E) == 4) return vload((const float*)p);
  const __m256i half = _mm256_loadu_si256((const __m256i*)p);
  if constexpr (std::is_same<C, fp16>::value) return _mm512_cvtph_ps(half);
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
  V out;
  for (int i = 0; i < kLanes; ++i) out[i] = to_float(p[i]);
  return out;
#endif
}

// The same of a row of which the first `count` elements exist.
template <class E, class C>
static inline V load_words(const C* p, int count) {
#if BLOCKS_AVX512
  const __mmask16 has = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
  const __mmask32 has_pairs = count >= 32 ? 0xffffffffu : (1u << count) - 1;
  if constexpr (sizeof(C) == 1) {
#if BLOCKS_BF16_DOT
    if constexpr (kPairs<E>) return pairs_of(p, has_pairs);
#endif
    return lanes_of(p, has);
  } else if constexpr (sizeof(C) == 4) {
    return _mm512_maskz_loadu_ps(has, p);
  } else if constexpr (kPairs<E>) {
    return (V)_mm512_maskz_loadu_epi16(has_pairs, p);
  } else {
    const __m256i half = _mm256_maskz_loadu_epi16(has, p);
    if constexpr (std::is_same<C, fp16>::value) return _mm512_cvtph_ps(half);
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
  }
#else
  V out{};
  for (int i = 0; i < kLanes && i < count; ++i) out[i] = to_float(p[i]);
  return out;
#endif
}

// Store 16 float32 as elements, of which the first `count` exist.
template <class E>
static inline void store_elements(E* p, V v, int count) {
#if BLOCKS_AVX512
  const __mmask16 has = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
  if constexpr (sizeof(E) == 4) return _mm512_mask_storeu_ps(p, has, v);
  if constexpr (std::is_same<E, fp16>::value)
    return _mm256_mask_storeu_epi16(p, has, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#if BLOCKS_BF16_DOT
  if constexpr (std::is_same<E, bf16>::value)
    return _mm256_mask_storeu_epi16(p, has, (__m256i)_mm512_cvtneps_pbh(v));
#endif
#endif
  for (int i = 0; i < kLanes && i < count; ++i) from_float(v[i], p + i);
}

// Rows of elements to rows of words, padded with zeros to a multiple of 16 words.
template <class E>
static inline void pack_row(const E* p, int head_dim, float* out) {
  for (int d = 0; d < head_dim; d += kLanes * kPerWord<E>, out += kLanes)
    vstore(out, load_words<E>(p + d, head_dim - d));
}

// A 16 x 16 matrix of words, transposed, to rows `stride` words apart.
static inline void store_transposed(const V* in, float* out, long stride) {
#if BLOCKS_AVX512
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(in[i], in[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(in[i], in[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d x = (__m512d)a[i + j], y = (__m512d)a[i + j + 2];
      b[i + 2 * j] = (__m512)_mm512_unpacklo_pd(x, y);
      b[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd(x, y);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      a[i + j] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0x88);
      a[i + j + 4] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    vstore(out + j * stride, _mm512_shuffle_f32x4(a[j], a[j + 8], 0x88));
    vstore(out + (j + 8) * stride, _mm512_shuffle_f32x4(a[j], a[j + 8], 0xdd));
  }
#else
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) out[j * stride + i] = in[i][j];
#endif
}

// Keys of a tile, transposed: out[word of the head][kTile]. Keys outside [first, last) become 0
// and are not read; nothing is written for groups of 16 keys from round_up(last, 16) on.
template <class E, class C>
static inline void pack_keys(const char* const* rows, long offset, int first, int last,
                             int head_dim, float* out, Ahead& ahead) {
  constexpr int step = kLanes * kPerWord<E>;
  const int lines = round_up(head_dim * (int)sizeof(C) / 2, 64) / 64 * 16;
  for (int key = 0; key < last; key += kLanes) {
    ahead.fetch(lines);
    const bool whole = key >= first && key + kLanes <= last && head_dim % step == 0;
    for (int d = 0; d < head_dim; d += step) {
      float* to = out + d / kPerWord<E> * kTile + key;
      V in[kLanes];
      if (whole) {
        for (int i = 0; i < kLanes; ++i) in[i] = load_words<E>((const C*)(rows[key + i] + offset) + d);
        store_transposed(in, to, kTile);
        continue;
      }
      for (int i = 0; i < kLanes; ++i) {
        const bool read = key + i >= first && key + i < last;
        in[i] = read ? load_words<E>((const C*)(rows[key + i] + offset) + d, head_dim - d) : V{};
      }
      store_transposed(in, to, kTile);
    }
  }
}

#if BLOCKS_BF16_DOT
// Two rows of 32 bf16 to 32 words, a word holding one element of each row. The words come in the
// order that costs least, four by four alternating; `in_order` puts sums of them right.
static inline void store_interleaved(V a, V b, float* to) {
  vstore(to, (V)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b));
  vstore(to + kLanes, (V)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b));
}
#endif

// The j-th 16 elements of a row of sums over packed values, in the order of the head.
template <class E>
static inline V in_order(const float* o, int j) {
#if BLOCKS_BF16_DOT
  if constexpr (kPairs<E>) {
    const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i index = _mm512_add_epi32(low, _mm512_set1_epi32(j % 2 * 8));
    const float* pair = o + j / 2 * 2 * kLanes;
    return _mm512_permutex2var_ps(vload(pair), index, vload(pair + kLanes));
  }
#endif
  return vload(o + j * kLanes);
}

// Values of a tile: out[word of the tile][stride], a word holding one key or two. Keys outside
// [first, last) become 0 and are not read.
template <class E, class C>
static inline void pack_values(const char* const* rows, long offset, int first, int last,
                               int head_dim, float* out, int stride, Ahead& ahead) {
  constexpr int per_word = kPerWord<E>, step = kLanes * per_word;
  const int lines = round_up(head_dim * (int)sizeof(C) / 2, 64) / 64;
  const auto has = [&](int key) { return key >= first && key < last; };
  for (int key = 0; key < last; key += per_word, out += stride) {
    const C* row[per_word];
    for (int i = 0; i < per_word; ++i) {
      row[i] = has(key + i) ? (const C*)(rows[key + i] + offset) : nullptr;
      ahead.fetch(lines);
    }
    if (row[0] && row[per_word - 1] && head_dim % step == 0) {
      for (int d = 0; d < head_dim; d += step) {
        if constexpr (per_word == 1) vstore(out + d, load_words<E>(row[0] + d));
#if BLOCKS_BF16_DOT
        else store_interleaved(load_words<E>(row[0] + d), load_words<E>(row[1] + d), out + d);
#endif
      }
      continue;
    }
    for (int d = 0; d < head_dim; d += step) {
      V in[per_word];
      for (int i = 0; i < per_word; ++i)
        in[i] = row[i] ? load_words<E>(row[i] + d, head_dim - d) : V{};
      if constexpr (per_word == 1) vstore(out + d, in[0]);
#if BLOCKS_BF16_DOT
      else store_interleaved(in[0], in[1], out + d);
#endif
    }
  }
}

// 64 weights to words, in key order.
template <bool PAIRS>
static inline void pack_weights(const V* p, float* out) {
#if BLOCKS_BF16_DOT
  if (PAIRS) {
    vstore(out, (V)_mm512_cvtne2ps_pbh(p[1], p[0]));
    vstore(out + kLanes, (V)_mm512_cvtne2ps_pbh(p[3], p[2]));
    return;
  }
#endif
  for (int j = 0; j < kTile / kLanes; ++j) vstore(out + j * kLanes, p[j]);
}
