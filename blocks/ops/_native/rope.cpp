// Rotary embedding of query and key, straight from the fused projection they are views of; in place
// or into new memory. Turning back is the same with the sine negated.
#include <initializer_list>

#include "lanes.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using lanes::kLanes;

constexpr int64_t kSerialElements = 1 << 17;  // below, a parallel region costs more than it saves

template <class T>
struct Heads {
    T* from;
    int64_t token_stride, head_stride, count;  // strides in elements; each head is contiguous
    T* to;                                     // contiguous; null for in place
};

template <class T>
inline void turn_halves(const T* from, T* to, const float* cos, const float* sin, float sign,
                        int64_t half) {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const f32x16 a = lanes::load(from + i), b = lanes::load(from + half + i);
        const f32x16 c = lanes::load(cos + i), s = sign * lanes::load(sin + i);
        lanes::store(to + i, a * c - b * s);
        lanes::store(to + half + i, b * c + a * s);
    }
    for (; i < half; ++i) {
        const float a = lanes::load_one(from + i), b = lanes::load_one(from + half + i);
        const float s = sign * sin[i];
        lanes::store_one(to + i, a * cos[i] - b * s);
        lanes::store_one(to + half + i, b * cos[i] + a * s);
    }
}

template <class T>
inline void turn_pairs(const T* from, T* to, const float* cos, const float* sin, float sign,
                       int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = lanes::load_one(from + 2 * i), b = lanes::load_one(from + 2 * i + 1);
        const float s = sign * sin[i];
        lanes::store_one(to + 2 * i, a * cos[i] - b * s);
        lanes::store_one(to + 2 * i + 1, b * cos[i] + a * s);
    }
}

template <class T>
int64_t rope(Heads<T> query, Heads<T> key, const int64_t* positions, const float* cos_sin,
             int64_t num_tokens, int64_t max_positions, int64_t rotary_dim, int64_t head_dim,
             int interleaved, float sign) {
    for (int64_t t = 0; t < num_tokens; ++t)
        if (positions[t] < 0 || positions[t] >= max_positions) return t;
    const int64_t half = rotary_dim / 2;
    const int64_t elements = num_tokens * (query.count + key.count) * rotary_dim;
#pragma omp parallel for schedule(static) if (elements > kSerialElements)
    for (int64_t t = 0; t < num_tokens; ++t) {
        const float* cos = cos_sin + positions[t] * rotary_dim;
        for (const Heads<T>& heads : {query, key}) {
            for (int64_t h = 0; h < heads.count; ++h) {
                T* from = heads.from + t * heads.token_stride + h * heads.head_stride;
                T* to = heads.to ? heads.to + (t * heads.count + h) * head_dim : from;
                if (interleaved) {
                    turn_pairs(from, to, cos, cos + half, sign, half);
                } else {
                    turn_halves(from, to, cos, cos + half, sign, half);
                }
                if (to != from && head_dim > rotary_dim)
                    std::memcpy(to + rotary_dim, from + rotary_dim,
                                (head_dim - rotary_dim) * sizeof(T));
            }
        }
    }
    return -1;
}

}  // namespace

// Returns -1, or the first token whose position is outside the table; then nothing is written.
#define DEFINE(T, suffix)                                                                         \
    extern "C" int64_t rope_##suffix(                                                             \
        T* query, int64_t query_token_stride, int64_t query_head_stride, int64_t num_heads,       \
        T* query_out, T* key, int64_t key_token_stride, int64_t key_head_stride,                  \
        int64_t num_kv_heads, T* key_out, const int64_t* positions, const float* cos_sin,         \
        int64_t num_tokens, int64_t max_positions, int64_t rotary_dim, int64_t head_dim,          \
        int interleaved, float sign) {                                                            \
        return rope<T>({query, query_token_stride, query_head_stride, num_heads, query_out},      \
                       {key, key_token_stride, key_head_stride, num_kv_heads, key_out},           \
                       positions, cos_sin, num_tokens, max_positions, rotary_dim, head_dim,       \
                       interleaved, sign);                                                        \
    }

DEFINE(bf16, bf16)
DEFINE(float, f32)
