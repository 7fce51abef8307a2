// Weights in eight or four bits, decoded a run of 64 columns at a time into float or bf16, where the
// stored numbers are exact. What the scale of a group does is left to the caller.
#pragma once

#include <algorithm>

#include "step.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace formats {

using lanes::bf16;
using lanes::f32x16;
using lanes::i32x16;
using lanes::u32x16;

typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

constexpr int64_t kRun = 64;  // groups of columns are multiples of it

inline int64_t runs(int64_t columns) { return (columns + kRun - 1) / kRun; }

inline u32x16 bytes_at(const uint8_t* from) {
#ifdef __AVX512F__
    return (u32x16)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#else
    u8x16 bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, u32x16);
#endif
}

inline i32x16 signed_bytes_at(const uint8_t* from) {
#ifdef __AVX512F__
    return (i32x16)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#else
    i8x16 bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, i32x16);
#endif
}

// The vectors of one run.
template <class T>
struct Run {
    static constexpr int64_t kVectors = kRun / Step<T>::kInputs;
    typename Step<T>::Vector vectors[kVectors];
};

// Four vectors of exact numbers as the run they are.
inline void pack(const f32x16* from, Run<float>& to) {
    for (int i = 0; i < 4; ++i) to.vectors[i] = from[i];
}

inline void pack(const f32x16* from, Run<bf16>& to) {
    for (int i = 0; i < 2; ++i) {
#ifdef __AVX512BF16__
        to.vectors[i] = _mm512_cvtne2ps_pbh((__m512)from[2 * i + 1], (__m512)from[2 * i]);
#else
        bf16 numbers[32];
        lanes::store(numbers, from[2 * i]);
        lanes::store(numbers + 16, from[2 * i + 1]);
        to.vectors[i] = Step<bf16>::load(numbers);
#endif
    }
}

// A format: bytes of a run, bytes of a row, and a run as numbers. Made for the zero point of a group.
struct Int8 {
    static constexpr int64_t kBytes = kRun;
    static int64_t row_bytes(int64_t inputs) { return inputs; }
    explicit Int8(float) {}
    template <class T>
    void decode(const uint8_t* from, Run<T>& to) const {
        f32x16 numbers[4];
        for (int i = 0; i < 4; ++i)
            numbers[i] = __builtin_convertvector(signed_bytes_at(from + 16 * i), f32x16);
        pack(numbers, to);
    }
};

struct Fp8 {  // e4m3: moved into place, a number is too small by 2**120, subnormals included
    static constexpr int64_t kBytes = kRun;
    static int64_t row_bytes(int64_t inputs) { return inputs; }
    explicit Fp8(float) {}
    template <class T>
    void decode(const uint8_t* from, Run<T>& to) const {
        f32x16 numbers[4];
        for (int i = 0; i < 4; ++i) {
            const u32x16 bits = bytes_at(from + 16 * i);
            const f32x16 size = (f32x16)((bits & 0x7fu) << 20) * 0x1p120f;
            numbers[i] = (f32x16)((u32x16)size | (bits & 0x80u) << 24);
        }
        pack(numbers, to);
    }
};

struct Int4 {  // byte b of a run holds column b low and column b + 32 high
    static constexpr int64_t kBytes = kRun / 2;
    static int64_t row_bytes(int64_t inputs) { return runs(inputs) * kBytes; }
    f32x16 table;  // the sixteen numbers less the zero point
    explicit Int4(float zero)
        : table(f32x16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} - zero) {}

    f32x16 numbers(u32x16 index) const {
#ifdef __AVX512F__
        return (f32x16)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)table);
#else
        return __builtin_convertvector((i32x16)(index & 15u), f32x16) + table[0];
#endif
    }

    template <class T>
    void decode(const uint8_t* from, Run<T>& to) const {
        f32x16 found[4];
        for (int i = 0; i < 2; ++i) {
            const u32x16 bytes = bytes_at(from + 16 * i);
            found[i] = numbers(bytes);  // looks at the low four bits alone
            found[i + 2] = numbers(bytes >> 4);
        }
        pack(found, to);
    }

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    void decode(const uint8_t* from, Run<bf16>& to) const {  // two instructions a vector
        const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)table);
        const __m512i words = _mm512_broadcast_i64x4(half);
        const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)from));
        to.vectors[0] = (__m512bh)_mm512_permutexvar_epi16(bytes, words);
        to.vectors[1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), words);
    }
#endif
};

template <class T>
struct Decoded {  // numbers of T that were decoded before
    static constexpr int64_t kBytes = kRun * sizeof(T);
    static int64_t row_bytes(int64_t inputs) { return runs(inputs) * kBytes; }
    explicit Decoded(float) {}
    void decode(const uint8_t* from, Run<T>& to) const {
        for (int i = 0; i < Run<T>::kVectors; ++i)
            to.vectors[i] = Step<T>::load((const T*)from + i * Step<T>::kInputs);
    }
};

// A run that ends behind the row's last column: zeros follow, never what lies there.
template <class F, class T>
inline void decode_last(const F& format, const uint8_t* from, int64_t bytes, Run<T>& to) {
    uint8_t buffer[F::kBytes] = {};
    std::memcpy(buffer, from, std::min(bytes, F::kBytes));
    format.decode(buffer, to);
}

}  // namespace formats
