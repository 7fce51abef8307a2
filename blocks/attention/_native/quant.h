// Bytes of a quantised cache as lanes of float32, or as words of two bf16; exactly, without scale.
#pragma once

#include "vec.h"

struct e4m3 {  // sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities
  uint8_t bits;
};

static inline float to_float(int8_t x) { return (float)x; }
static inline float to_float(e4m3 x) {
  if ((x.bits & 0x7f) == 0x7f) return NAN;
  // as a float16 it is too small by 2^8, subnormals included
  return to_float(fp16{(uint16_t)((x.bits & 0x80) << 8 | (x.bits & 0x7f) << 7)}) * 256.f;
}

#if BLOCKS_AVX512
static inline V lanes_of(const int8_t* p, __mmask16 has) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(has, p)));
}
static inline V lanes_of(const e4m3* p, __mmask16 has) {
  const __m128i bytes = _mm_maskz_loadu_epi8(has, p), low = _mm_set1_epi8(0x7f);
  const __m256i wide = _mm256_cvtepu8_epi16(bytes);
  const __m256i size = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
  const V value = _mm512_cvtph_ps(_mm256_or_si256(size, sign)) * 256.f;
  const __mmask16 nan = _mm_cmpeq_epi8_mask(_mm_and_si128(bytes, low), low);
  return _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(NAN));
}
#endif

#if BLOCKS_BF16_DOT
static inline V pairs_of(const int8_t* p, __mmask32 has) {
  const V low = lanes_of(p, (__mmask16)has), high = lanes_of(p + kLanes, (__mmask16)(has >> 16));
  return (V)_mm512_cvtne2ps_pbh(high, low);
}
static inline V pairs_of(const e4m3* p, __mmask32 has) {
  const __m512i wide = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(has, p));
  const __m512i size = _mm512_and_si512(wide, _mm512_set1_epi16(0x7f));
  // normal numbers: exponent and mantissa in place, the difference of the biases (120) added
  __m512i out = _mm512_add_epi16(_mm512_slli_epi16(size, 4), _mm512_set1_epi16(120 << 7));
  // the eight subnormal ones, multiples of 2^-9
  const __m128i table = _mm_set_epi16(0x3c60, 0x3c40, 0x3c20, 0x3c00, 0x3bc0, 0x3b80, 0x3b00, 0);
  const __mmask32 subnormal = _mm512_cmplt_epu16_mask(size, _mm512_set1_epi16(8));
  out = _mm512_mask_permutexvar_epi16(out, subnormal, size, _mm512_broadcast_i32x4(table));
  const __mmask32 nan = _mm512_cmpeq_epi16_mask(size, _mm512_set1_epi16(0x7f));
  out = _mm512_mask_mov_epi16(out, nan, _mm512_set1_epi16(0x7fc0));
  const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(wide, _mm512_set1_epi16(0x80)), 8);
  return (V)_mm512_or_si512(out, sign);
}
#endif
