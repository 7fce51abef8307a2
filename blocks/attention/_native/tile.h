// Tiles of keys and values brought into the order the products want, and the one product.
//
// A "word" is 32 bits: one float32, or (with bf16 dot products) two neighbouring bf16. Then
// scores = Q . K^T and outputs = P . V are the same product of words: rows of A broadcast against
// rows of B, 16 lanes at a time, float32 sums.
#pragma once

#include <type_traits>

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
                    long ldc, bool keep) {
  V acc[ROWS][COLS];
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < COLS; ++j) acc[r][j] = keep ? vload(c + r * ldc + j * kLanes) : V{};
  for (int s = 0; s < steps; ++s) {
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

typedef void (*Product)(const float*, long, const float*, long, int, float*, long, bool);

template <bool PAIRS>
static inline Product product_of(int rows, int cols) {
#define ROW(R) {product<PAIRS, R, 1>, product<PAIRS, R, 2>, product<PAIRS, R, 3>, product<PAIRS, R, 4>}
  static const Product table[kRows][kCols] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};
#undef ROW
  return table[rows - 1][cols - 1];
}

// Sixteen words from a row of elements, of which the first `count` elements exist.
template <class E>
static inline V load_words(const E* p, int count) {
#if BLOCKS_AVX512
  if constexpr (sizeof(E) == 4) {
    const __mmask16 has = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
    return _mm512_maskz_loadu_ps(has, p);
  } else if constexpr (kPairs<E>) {
    const __mmask32 has = count >= 32 ? 0xffffffffu : (1u << count) - 1;
    return (V)_mm512_maskz_loadu_epi16(has, p);
  } else {
    const __mmask16 has = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
    const __m256i half = _mm256_maskz_loadu_epi16(has, p);
    if constexpr (std::is_same<E, fp16>::value) return _mm512_cvtph_ps(half);
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
    vstore(out, load_words(p + d, head_dim - d));
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
template <class E>
static void pack_keys(const char* const* rows, long offset, int first, int last, int head_dim,
                      float* out) {
  for (int key = 0; key < last; key += kLanes) {
    const bool whole = key >= first && key + kLanes <= last;
    int word = 0;
    for (int d = 0; d < head_dim; d += kLanes * kPerWord<E>, word += kLanes) {
      V in[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const bool read = whole || (key + i >= first && key + i < last);
        in[i] = read ? load_words((const E*)(rows[key + i] + offset) + d, head_dim - d) : V{};
      }
      store_transposed(in, out + word * kTile + key, kTile);
    }
  }
}

// Values of a tile: out[word of the tile][stride], a word holding one key or two. Keys outside
// [first, last) become 0 and are not read.
template <class E>
static void pack_values(const char* const* rows, long offset, int first, int last, int head_dim,
                        float* out, int stride) {
  for (int key = 0; key < last; key += kPerWord<E>) {
    const bool has0 = key >= first && key < last;
    const E* row0 = (const E*)(has0 ? rows[key] + offset : nullptr);
    float* to = out + key / kPerWord<E> * stride;
    if constexpr (kPairs<E>) {
#if BLOCKS_BF16_DOT
      const bool has1 = key + 1 >= first && key + 1 < last;
      const E* row1 = (const E*)(has1 ? rows[key + 1] + offset : nullptr);
      const __m512i step = _mm512_set1_epi32(0x00010001);
      const __m512i low = _mm512_set_epi16(
          47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
          35, 3, 34, 2, 33, 1, 32, 0);
      const __m512i high = _mm512_add_epi16(low, _mm512_slli_epi16(step, 4));
      for (int d = 0; d < head_dim; d += 32) {
        const __m512i a = has0 ? (__m512i)load_words(row0 + d, head_dim - d) : __m512i{};
        const __m512i b = has1 ? (__m512i)load_words(row1 + d, head_dim - d) : __m512i{};
        vstore(to + d, (V)_mm512_permutex2var_epi16(a, low, b));
        vstore(to + d + kLanes, (V)_mm512_permutex2var_epi16(a, high, b));
      }
#endif
    } else {
      for (int d = 0; d < head_dim; d += kLanes)
        vstore(to + d, has0 ? load_words(row0 + d, head_dim - d) : V{});
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
