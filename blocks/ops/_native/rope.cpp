// Rotary embedding of query and key in place, straight in the fused projection they are views of.
#include <initializer_list>

#include "lanes.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using lanes::kLanes;

constexpr int64_t kSerialElements = 1 << 17;  // below, a parallel region costs more than it saves

template <class T>
struct Heads {
    T* first;
    int64_t token_stride, head_stride, count;  // strides in elements; each head is contiguous
};

template <class T>
inline void turn_halves(T* head, const float* cos, const float* sin, int64_t half) {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const f32x16 a = lanes::load(head + i), b = lanes::load(head + half + i);
        const f32x16 c = lanes::load(cos + i), s = lanes::load(sin + i);
        lanes::store(head + i, a * c - b * s);
        lanes::store(head + half + i, b * c + a * s);
    }
    for (; i < half; ++i) {
        const float a = lanes::load_one(head + i), b = lanes::load_one(head + half + i);
        lanes::store_one(head + i, a * cos[i] - b * sin[i]);
        lanes::store_one(head + half + i, b * cos[i] + a * sin[i]);
    }
}

template <class T>
inline void turn_pairs(T* head, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = lanes::load_one(head + 2 * i), b = lanes::load_one(head + 2 * i + 1);
        lanes::store_one(head + 2 * i, a * cos[i] - b * sin[i]);
        lanes::store_one(head + 2 * i + 1, b * cos[i] + a * sin[i]);
    }
}

template <class T>
int64_t rope(Heads<T> query, Heads<T> key, const int64_t* positions, const float* cos_sin,
             int64_t num_tokens, int64_t max_positions, int64_t rotary_dim, int interleaved) {
    for (int64_t t = 0; t < num_tokens; ++t)
        if (positions[t] < 0 || positions[t] >= max_positions) return t;
    const int64_t half = rotary_dim / 2;
    const int64_t elements = num_tokens * (query.count + key.count) * rotary_dim;
#pragma omp parallel for schedule(static) if (elements > kSerialElements)
    for (int64_t t = 0; t < num_tokens; ++t) {
        const float* cos = cos_sin + positions[t] * rotary_dim;
        for (const Heads<T>& heads : {query, key}) {
            for (int64_t h = 0; h < heads.count; ++h) {
                T* head = heads.first + t * heads.token_stride + h * heads.head_stride;
                if (interleaved) {
                    turn_pairs(head, cos, cos + half, half);
                } else {
                    turn_halves(head, cos, cos + half, half);
                }
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
        T* key, int64_t key_token_stride, int64_t key_head_stride, int64_t num_kv_heads,          \
        const int64_t* positions, const float* cos_sin, int64_t num_tokens,                       \
        int64_t max_positions, int64_t rotary_dim, int interleaved) {                             \
        return rope<T>({query, query_token_stride, query_head_stride, num_heads},                 \
                       {key, key_token_stride, key_head_stride, num_kv_heads}, positions,         \
                       cos_sin, num_tokens, max_positions, rotary_dim, interleaved);              \
    }

DEFINE(bf16, bf16)
DEFINE(float, f32)
