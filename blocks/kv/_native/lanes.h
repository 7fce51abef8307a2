// Sixteen fp32 lanes in the compiler's own vector types: one source for AVX-512, AVX2, NEON, ...
// Elements are float or bf16 (the upper half of a float); arithmetic is always fp32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace lanes {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

struct bf16 {
  uint16_t bits;
};

constexpr int64_t kLanes = 16;

inline f32x16 splat(float value) { return f32x16{} + value; }
inline u32x16 splat_bits(uint32_t bits) { return u32x16{} + bits; }

inline f32x16 load(const float* from) {
  f32x16 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline f32x16 load(const bf16* from) {
  u16x16 half;
  std::memcpy(&half, from, sizeof half);
  return (f32x16)(__builtin_convertvector(half, u32x16) << 16);
}

// Round to nearest, ties to even; a NaN stays one. (The instruction takes subnormals as zero.)
inline u16x16 round_to_bf16(f32x16 value) {
#ifdef __AVX512BF16__
  return (u16x16)_mm512_cvtneps_pbh((__m512)value);
#else
  const u32x16 bits = (u32x16)value;
  const u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const i32x16 is_nan = value != value;
  const u32x16 chosen = is_nan ? (bits >> 16) | 0x40u : rounded;
  return __builtin_convertvector(chosen, u16x16);
#endif
}

inline void store(float* to, f32x16 value) { std::memcpy(to, &value, sizeof value); }

inline void store(bf16* to, f32x16 value) {
  const u16x16 half = round_to_bf16(value);
  std::memcpy(to, &half, sizeof half);
}

// The first `count` elements; the other lanes are zero.
template <class T>
inline f32x16 load_some(const T* from, int64_t count) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, from, count * sizeof(T));
  return load(buffer);
}

template <class T>
inline void store_some(T* to, f32x16 value, int64_t count) {
  T buffer[kLanes];
  store(buffer, value);
  std::memcpy(to, buffer, count * sizeof(T));
}

// What a value becomes once stored as T: the rounding a model does between two operations.
inline f32x16 rounded(f32x16 value, const float*) { return value; }
inline f32x16 rounded(f32x16 value, const bf16*) {
  return (f32x16)(__builtin_convertvector(round_to_bf16(value), u32x16) << 16);
}

// Sum of all lanes in a fixed tree: lanes i and i + 8, then + 4, + 2, + 1.
inline float sum(f32x16 v) {
  const auto h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                   __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto q = __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
  const auto p = __builtin_shufflevector(q, q, 0, 1) + __builtin_shufflevector(q, q, 2, 3);
  return p[0] + p[1];
}

inline void store_one(float* to, float value) { *to = value; }
inline void store_one(bf16* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const bool is_nan = value != value;
  to->bits = is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline float load_one(const float* from) { return *from; }
inline float load_one(const bf16* from) {
  const uint32_t bits = static_cast<uint32_t>(from->bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Calls body(position, count) for every run of up to 16 elements.
template <class Body>
inline void for_lanes(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, kLanes);
  if (i < size) body(i, size - i);
}

template <class T>
inline f32x16 get(const T* from, int64_t count) {
  return count == kLanes ? load(from) : load_some(from, count);
}

template <class T>
inline void put(T* to, f32x16 value, int64_t count) {
  if (count == kLanes) {
    store(to, value);
  } else {
    store_some(to, value, count);
  }
}

}  // namespace lanes
