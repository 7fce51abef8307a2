// Rows of one head quantised to one byte an element, in the compiler's own vector types. Elements
// are float or bf16; arithmetic is fp32. The rounding is that of blocks/kv/scales.py.
#pragma once

#include "lanes.h"

namespace quantise {

using lanes::f32x16;
using lanes::i32x16;
using lanes::kLanes;
using lanes::u32x16;

typedef uint8_t u8x16 __attribute__((vector_size(16)));

constexpr float kSmallest = 1.17549435e-38f;
constexpr float kLargest = 3.40282347e+38f;
constexpr int kFp8 = 0, kInt8 = 1;

inline float limit(int format) { return format == kFp8 ? 448.0f : 127.0f; }

// Adding 2**14 leaves a multiple of 2**-9, the step of e4m3's subnormals.
inline u8x16 to_fp8(f32x16 x) {
  const u32x16 bits = (u32x16)x, sign = (bits >> 24) & 0x80u;
  const u32x16 size = bits & 0x7fffffffu;
  const u32x16 top = lanes::splat_bits(0x43e00000u);  // 448
  const u32x16 held = size > top ? top : size;
  const u32x16 normal = ((held + 0x7ffffu + ((held >> 20) & 1u)) >> 20) - (120u << 3);
  const u32x16 small = (u32x16)((f32x16)held + 16384.0f) - 0x46800000u;
  const u32x16 code = held < 0x3c800000u ? small : normal;  // 2**-6 is the least normal number
  return __builtin_convertvector(sign | (size > 0x7f800000u ? u32x16{} + 0x7fu : code), u8x16);
}

// Adding 1.5 * 2**23 rounds to an integer, ties to even. A NaN becomes 0.
inline u8x16 to_int8(f32x16 x) {
  const f32x16 magic = lanes::splat(12582912.0f);
  f32x16 held = x > 127.0f ? lanes::splat(127.0f) : x;
  held = held < -127.0f ? lanes::splat(-127.0f) : held;
  held = x != x ? lanes::splat(0.0f) : held;
  return __builtin_convertvector((u32x16)(held + magic), u8x16);  // the low byte of the sum
}

// The scale that fits `row`; NaN if the row has one. Bits of magnitudes order like magnitudes.
template <class T>
float token_scale(const T* row, int64_t size, int format) {
  u32x16 most = {};
  lanes::for_lanes(size, [&](int64_t i, int64_t n) {
    const u32x16 here = (u32x16)lanes::get(row + i, n) & 0x7fffffffu;
    most = here > most ? here : most;
  });
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = most[lane] > bits ? most[lane] : bits;
  float largest;
  std::memcpy(&largest, &bits, 4);
  if (largest != largest) return largest;
  const float scale = (largest > kLargest ? kLargest : largest) / limit(format);
  return scale < kSmallest ? kSmallest : scale;
}

template <class T>
void row(const T* from, uint8_t* to, int64_t size, float scale, int format) {
  const float inverse = 1.0f / scale;
  lanes::for_lanes(size, [&](int64_t i, int64_t n) {
    const f32x16 steps = lanes::get(from + i, n) * inverse;
    const u8x16 codes = format == kFp8 ? to_fp8(steps) : to_int8(steps);
    std::memcpy(to + i, &codes, n);
  });
}

// One cache of quantised keys or values with its scales; strides in elements.
struct Cache {
  uint8_t* codes;
  int64_t block_stride, slot_stride;
  float* scales;
  int64_t scale_block, scale_slot, scale_head;
  int64_t dynamic;  // scales are measured and written, not read

  float* scale_at(int64_t block, int64_t slot, int64_t head) const {
    return scales + block * scale_block + slot * scale_slot + head * scale_head;
  }

  // Whether the scales to be read for a slot are usable.
  bool ready(int64_t block, int64_t slot, int64_t num_heads) const {
    if (dynamic) return true;
    for (int64_t head = 0; head < num_heads; ++head) {
      const float scale = *scale_at(block, slot, head);
      if (!(scale >= kSmallest && scale <= kLargest)) return false;
    }
    return true;
  }

  template <class T>
  void write(const T* from, int64_t head, int64_t head_dim, int64_t block, int64_t slot,
             int format) const {
    float* scale = scale_at(block, slot, head);
    if (dynamic) *scale = token_scale(from, head_dim, format);
    uint8_t* to = codes + block * block_stride + slot * slot_stride + head * head_dim;
    row(from, to, head_dim, *scale, format);
  }
};

}  // namespace quantise
