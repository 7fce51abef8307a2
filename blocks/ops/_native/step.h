// One step of a product's inner loop: what it takes from a row of float or bf16, and how a vector of
// it times a vector of another row is added to sixteen fp32 sums.
#pragma once

#include "lanes.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

template <class T>
struct Step;

template <>
struct Step<float> {
    using Vector = lanes::f32x16;
    static constexpr int64_t kInputs = 16;
    static Vector load(const float* from) { return lanes::load(from); }
    static lanes::f32x16 add(lanes::f32x16 sum, Vector w, Vector x) { return sum + w * x; }
};

template <>
struct Step<lanes::bf16> {
    static constexpr int64_t kInputs = 32;
#ifdef __AVX512BF16__
    using Vector = __m512bh;
    static Vector load(const lanes::bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
    static lanes::f32x16 add(lanes::f32x16 sum, Vector w, Vector x) {
        return (lanes::f32x16)_mm512_dpbf16_ps((__m512)sum, w, x);
    }
#else
    using Vector = lanes::u32x16;  // two neighbours per lane
    static Vector load(const lanes::bf16* from) {
        Vector pairs;
        std::memcpy(&pairs, from, sizeof pairs);
        return pairs;
    }
    static lanes::f32x16 add(lanes::f32x16 sum, Vector w, Vector x) {
        using lanes::f32x16;
        sum += (f32x16)(w & 0xffff0000u) * (f32x16)(x & 0xffff0000u);
        return sum + (f32x16)(w << 16) * (f32x16)(x << 16);
    }
#endif
};
