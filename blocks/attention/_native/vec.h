// Sixteen float32 lanes: AVX-512 where the processor has it, the compiler's own vectors otherwise.
//
// Every function is a pure function of its lanes, so a row's arithmetic is the same wherever in a
// block of rows it is computed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && !defined(BLOCKS_PORTABLE)
#define BLOCKS_AVX512 1
#include <immintrin.h>
#else
#define BLOCKS_AVX512 0
#endif
#if BLOCKS_AVX512 && defined(__AVX512BF16__)
#define BLOCKS_BF16_DOT 1
#else
#define BLOCKS_BF16_DOT 0
#endif

constexpr int kLanes = 16;

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

typedef float V __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));

static inline V vload(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline void vstore(float* p, V v) { std::memcpy(p, &v, sizeof v); }

#if BLOCKS_AVX512

static inline V vset(float x) { return _mm512_set1_ps(x); }
static inline V vfma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static inline V vmax(V a, V b) { return _mm512_max_ps(a, b); }
static inline float vreduce_max(V a) { return _mm512_reduce_max_ps(a); }
static inline float vreduce_add(V a) { return _mm512_reduce_add_ps(a); }
static inline V vround(V a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline V vscale_by_power(V a, V n) { return _mm512_scalef_ps(a, n); }
// Lanes [first, last) keep their value, the others become -inf.
static inline V vkeep(V a, int first, int last) {
  first = first < 0 ? 0 : first > kLanes ? kLanes : first;
  last = last < first ? first : last > kLanes ? kLanes : last;
  const __mmask16 keep = (__mmask16)(((1u << last) - 1) & ~((1u << first) - 1));
  return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), keep, a);
}
static inline V vlanes() {
  return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}
static inline V vabs(V a) { return _mm512_abs_ps(a); }
static inline V vwhere_less(V a, float b, V then, V otherwise) {
  return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(a, vset(b), _CMP_LT_OQ), then);
}

#else

static inline V vset(float x) {
  V a;
  for (int i = 0; i < kLanes; ++i) a[i] = x;
  return a;
}
static inline V vfma(V a, V b, V c) { return a * b + c; }
static inline V vmax(V a, V b) {
  for (int i = 0; i < kLanes; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
  return a;
}
static inline float vreduce_max(V a) {
  float most = a[0];
  for (int i = 1; i < kLanes; ++i) most = a[i] > most ? a[i] : most;
  return most;
}
static inline float vreduce_add(V a) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += a[i];
  return sum;
}
static inline V vround(V a) {
  for (int i = 0; i < kLanes; ++i) a[i] = nearbyintf(a[i]);
  return a;
}
static inline V vscale_by_power(V a, V n) {
  for (int i = 0; i < kLanes; ++i) a[i] = n[i] < -126.f ? 0.f : ldexpf(a[i], (int)n[i]);
  return a;
}
static inline V vkeep(V a, int first, int last) {
  for (int i = 0; i < kLanes; ++i) a[i] = i >= first && i < last ? a[i] : -INFINITY;
  return a;
}
static inline V vlanes() {
  V a{};
  for (int i = 0; i < kLanes; ++i) a[i] = (float)i;
  return a;
}
static inline V vwhere_less(V a, float b, V then, V otherwise) {
  for (int i = 0; i < kLanes; ++i) otherwise[i] = a[i] < b ? then[i] : otherwise[i];
  return otherwise;
}
static inline V vabs(V a) {
  for (int i = 0; i < kLanes; ++i) a[i] = fabsf(a[i]);
  return a;
}

#endif

// 2^x, relative error about 1e-7; exactly 1 at 0 and exactly 0 at -inf; NaN stays NaN.
static inline V vexp2(V x) {
  x = vmax(vset(-200.f), x);
  const V n = vround(x);
  const V f = x - n;
  V p = vset(1.5403530393381609e-4f);
  p = vfma(p, f, vset(1.3333558146428443e-3f));
  p = vfma(p, f, vset(9.6181291076284772e-3f));
  p = vfma(p, f, vset(5.5504108664821580e-2f));
  p = vfma(p, f, vset(2.4022650695910072e-1f));
  p = vfma(p, f, vset(6.9314718055994531e-1f));
  p = vfma(p, f, vset(1.f));
  return vscale_by_power(p, n);
}

// tanh: an odd polynomial near 0 (Cephes, tanhf), 1 - 2 / (exp(2|x|) + 1) elsewhere.
static inline V vtanh(V x) {
  const V size = -vmax(vset(-20.f), -vabs(x));
  const V z = x * x;
  V p = vset(-5.70498872745e-3f);
  p = vfma(p, z, vset(2.06390887954e-2f));
  p = vfma(p, z, vset(-5.37397155531e-2f));
  p = vfma(p, z, vset(1.33314422036e-1f));
  p = vfma(p, z, vset(-3.33332819422e-1f));
  const V near = vfma(p * z, x, x);
  const V far = 1.f - 2.f / (vexp2(size * 2.8853900817779268f) + 1.f);
  return vwhere_less(size, 0.625f, near, vwhere_less(x, 0.f, -far, far));
}

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
static inline float to_float(fp16 x) {
#if defined(__FLT16_MAX__)
  _Float16 half;
  std::memcpy(&half, &x.bits, 2);
  return (float)half;
#else
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  uint32_t bits = sign;
  if (rest >= 0x7c00) bits |= 0x7f800000 | (rest & 0x3ff) << 13;
  else if (rest >= 0x400) bits |= (rest << 13) + (112u << 23);
  float out;
  std::memcpy(&out, &bits, 4);
  return rest < 0x400 ? (sign ? -1.f : 1.f) * (float)rest * 5.9604644775390625e-8f : out;
#endif
}

static inline void from_float(float x, float* out) { *out = x; }
static inline void from_float(float x, bf16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) bits |= 0x400000;
  else bits += 0x7fff + (bits >> 16 & 1);
  out->bits = (uint16_t)(bits >> 16);
}
static inline void from_float(float x, fp16* out) {
#if defined(__FLT16_MAX__)
  const _Float16 half = (_Float16)x;
  std::memcpy(&out->bits, &half, 2);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  uint32_t half;
  if (size > 0x7f800000) half = 0x7e00;
  else if (size >= 0x477ff000) half = 0x7c00;
  else if (size < 0x38800000) half = (uint32_t)nearbyintf(fabsf(x) * 16777216.f);
  else half = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
  out->bits = (uint16_t)(sign | half);
#endif
}
