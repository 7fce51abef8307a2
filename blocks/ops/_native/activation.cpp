// act(gate) * up of rows [gate | up], computed in fp32 and rounded once; and its gradient.
#include "rows.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using rows::for_lanes;
using rows::get;
using rows::put;

constexpr int64_t kSerialElements = 1 << 16;  // below, a parallel region costs more than it saves

struct Silu {
    static f32x16 value(f32x16 x) { return x / (1.0f + lanes::exp(-x)); }
    static f32x16 slope(f32x16 x, f32x16 value) {  // value is x * share
        const f32x16 share = 1.0f / (1.0f + lanes::exp(-x));
        return share + value * (1.0f - share);
    }
};

// 0.5 x (1 + tanh(u)) is x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x**3).
struct GeluTanh {
    static f32x16 share(f32x16 x) {
        return 1.0f / (1.0f + lanes::exp(-1.5957691216f * (x + 0.044715f * x * x * x)));
    }
    static f32x16 value(f32x16 x) {
        return x / (1.0f + lanes::exp(-1.5957691216f * (x + 0.044715f * x * x * x)));
    }
    static f32x16 slope(f32x16 x, f32x16 value) {
        const f32x16 part = share(x), rest = value * (1.0f - part);
        const f32x16 found = part + rest * (1.5957691216f * (1.0f + 0.134145f * x * x));
        return rest == 0.0f ? part : found;  // far out, where x * x may be infinite
    }
};

template <class Activation, class T>
void gated(const T* gate_up, T* y, int64_t num_rows, int64_t hidden_size) {
#pragma omp parallel for schedule(static) if (num_rows * hidden_size > kSerialElements)
    for (int64_t row = 0; row < num_rows; ++row) {
        const T* gate = gate_up + 2 * row * hidden_size;
        T* out = y + row * hidden_size;
        for_lanes(hidden_size, [&](int64_t c, int64_t n) {
            put(out + c, Activation::value(get(gate + c, n)) * get(gate + hidden_size + c, n), n);
        });
    }
}

template <class Activation, class T>
void gated_backward(const T* dy, const T* gate_up, T* dgate_up, int64_t num_rows,
                    int64_t hidden_size) {
#pragma omp parallel for schedule(static) if (num_rows * hidden_size > kSerialElements)
    for (int64_t row = 0; row < num_rows; ++row) {
        const T* gate = gate_up + 2 * row * hidden_size;
        const T* wanted = dy + row * hidden_size;
        T* dgate = dgate_up + 2 * row * hidden_size;
        for_lanes(hidden_size, [&](int64_t c, int64_t n) {
            const f32x16 x = get(gate + c, n), d = get(wanted + c, n);
            const f32x16 value = Activation::value(x);
            put(dgate + hidden_size + c, d * value, n);
            const f32x16 up = get(gate + hidden_size + c, n);
            put(dgate + c, d * up * Activation::slope(x, value), n);
        });
    }
}

}  // namespace

#define DEFINE_ONE(Activation, name, T, suffix)                                                   \
    extern "C" void name##_##suffix(const T* gate_up, T* y, int64_t num_rows,                     \
                                    int64_t hidden_size) {                                        \
        gated<Activation, T>(gate_up, y, num_rows, hidden_size);                                  \
    }                                                                                             \
    extern "C" void name##_backward_##suffix(const T* dy, const T* gate_up, T* dgate_up,          \
                                             int64_t num_rows, int64_t hidden_size) {             \
        gated_backward<Activation, T>(dy, gate_up, dgate_up, num_rows, hidden_size);              \
    }
#define DEFINE(T, suffix)                                                                         \
    DEFINE_ONE(Silu, silu_and_mul, T, suffix)                                                     \
    DEFINE_ONE(GeluTanh, gelu_tanh_and_mul, T, suffix)

DEFINE(bf16, bf16)
DEFINE(float, f32)
