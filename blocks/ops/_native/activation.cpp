// act(gate) * up of rows [gate | up], computed in fp32 and rounded once.
#include "lanes.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using lanes::kLanes;

constexpr int64_t kSerialElements = 1 << 16;  // below, a parallel region costs more than it saves

inline f32x16 silu(f32x16 x) { return x / (1.0f + lanes::exp(-x)); }

// 0.5 x (1 + tanh(u)) is x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x**3).
inline f32x16 gelu_tanh(f32x16 x) {
    return x / (1.0f + lanes::exp(-1.5957691216f * (x + 0.044715f * x * x * x)));
}

template <f32x16 (*activate)(f32x16), class T>
void gated(const T* gate_up, T* y, int64_t num_rows, int64_t hidden_size) {
#pragma omp parallel for schedule(static) if (num_rows * hidden_size > kSerialElements)
    for (int64_t row = 0; row < num_rows; ++row) {
        const T* gate = gate_up + 2 * row * hidden_size;
        const T* up = gate + hidden_size;
        T* out = y + row * hidden_size;
        int64_t c = 0;
        for (; c + kLanes <= hidden_size; c += kLanes)
            lanes::store(out + c, activate(lanes::load(gate + c)) * lanes::load(up + c));
        if (const int64_t left = hidden_size - c; left > 0) {
            const f32x16 a = lanes::load_some(gate + c, left), b = lanes::load_some(up + c, left);
            lanes::store_some(out + c, activate(a) * b, left);
        }
    }
}

}  // namespace

#define DEFINE(T, suffix)                                                                         \
    extern "C" void silu_and_mul_##suffix(const T* gate_up, T* y, int64_t num_rows,               \
                                          int64_t hidden_size) {                                  \
        gated<silu, T>(gate_up, y, num_rows, hidden_size);                                        \
    }                                                                                             \
    extern "C" void gelu_tanh_and_mul_##suffix(const T* gate_up, T* y, int64_t num_rows,          \
                                               int64_t hidden_size) {                             \
        gated<gelu_tanh, T>(gate_up, y, num_rows, hidden_size);                                   \
    }

DEFINE(bf16, bf16)
DEFINE(float, f32)
