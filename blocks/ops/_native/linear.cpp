// y = x @ weight.T + bias for few rows of x: every weight is read from memory once, as stored.
//
// One tile is R rows of weight by M rows of x. Each of its R * M results has one vector of partial
// sums, fed in order of the inputs and summed at the end in a fixed tree. The order of additions of
// a result is therefore the same in every tile shape: a row of y does not depend on the other rows.
#include <algorithm>

#include "step.h"

namespace {

using lanes::bf16;
using lanes::f32x16;

constexpr int kTileOutputs = 4;                // R: with 6 rows, 24 sums + 4 weights + 1 input of
constexpr int kTileRows = 6;                   // M: 32 vector registers
constexpr int64_t kSerialProducts = 1 << 16;   // below, a parallel region costs more than it saves

template <class T>
typename Step<T>::Vector tail(const T* from, int64_t count) {
    T buffer[Step<T>::kInputs] = {};
    std::memcpy(buffer, from, count * sizeof(T));
    return Step<T>::load(buffer);
}

template <class T>
struct Problem {
    const T *x, *weight, *bias;  // [num_rows, inputs], [outputs, inputs], [outputs] or null
    T* y;                        // [num_rows, outputs]
    int64_t num_rows, inputs, outputs;
};

// Results of weight rows [out, out + R) for rows [row, row + M). Meanwhile the next tile's weight
// rows [ahead, ahead + P) are asked for.
template <class T, int R, int M, int P>
void tile(const Problem<T>& p, int64_t out, int64_t row, int64_t ahead) {
    using S = Step<T>;
    const T* w = p.weight + out * p.inputs;
    const T* x = p.x + row * p.inputs;
    const T* next = w + (R + ahead) * p.inputs;
    f32x16 sums[R][M] = {};
    int64_t k = 0;
    for (; k + S::kInputs <= p.inputs; k += S::kInputs) {
        typename S::Vector weights[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) weights[r] = S::load(w + r * p.inputs + k);
#pragma GCC unroll 8
        for (int r = 0; r < P; ++r) __builtin_prefetch(next + r * p.inputs + k);
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) {
            const auto input = S::load(x + i * p.inputs + k);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sums[r][i] = S::add(sums[r][i], weights[r], input);
        }
    }
    if (const int64_t left = p.inputs - k; left > 0) {
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) {
            const auto input = tail<T>(x + i * p.inputs + k, left);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                sums[r][i] = S::add(sums[r][i], tail<T>(w + r * p.inputs + k, left), input);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const float bias = p.bias ? lanes::load_one(p.bias + out + r) : 0.0f;
            lanes::store_one(p.y + (row + i) * p.outputs + out + r, lanes::sum(sums[r][i]) + bias);
        }
    }
}

template <class T, int R, int P>
void pass(const Problem<T>& p, int64_t out, int64_t row, int64_t size, int64_t ahead) {
    switch (size) {
        case 1: return tile<T, R, 1, P>(p, out, row, ahead);
        case 2: return tile<T, R, 2, P>(p, out, row, ahead);
        case 3: return tile<T, R, 3, P>(p, out, row, ahead);
        case 4: return tile<T, R, 4, P>(p, out, row, ahead);
        case 5: return tile<T, R, 5, P>(p, out, row, ahead);
        default: return tile<T, R, kTileRows, P>(p, out, row, ahead);
    }
}

// All rows of x against weight rows [out, out + R), in passes of nearly equal size that share the
// prefetching among them.
template <class T, int R>
void all_rows(const Problem<T>& p, int64_t out) {
    const int64_t passes = (p.num_rows + kTileRows - 1) / kTileRows;
    const int64_t share = R == 1 ? 0 : passes == 1 ? 4 : passes < 4 ? 2 : 1;
    int64_t row = 0, ahead = 0;
    for (int64_t i = 0; i < passes; ++i) {
        const int64_t size = (p.num_rows - row) / (passes - i);
        switch (ahead < R ? share : 0) {
            case 0: pass<T, R, 0>(p, out, row, size, 0); break;
            case 1: pass<T, R, 1>(p, out, row, size, ahead); break;
            case 2: pass<T, R, 2>(p, out, row, size, ahead); break;
            default: pass<T, R, 4>(p, out, row, size, ahead); break;
        }
        row += size;
        ahead += share;
    }
}

template <class T>
void linear(const Problem<T>& p) {
    const int64_t tiles = p.outputs / kTileOutputs;
    const int64_t products = p.num_rows * p.inputs * p.outputs;
#pragma omp parallel for schedule(static) if (products > kSerialProducts)
    for (int64_t t = 0; t < tiles; ++t) all_rows<T, kTileOutputs>(p, t * kTileOutputs);
    for (int64_t out = tiles * kTileOutputs; out < p.outputs; ++out) all_rows<T, 1>(p, out);
}

}  // namespace

extern "C" void linear_bf16(const bf16* x, const bf16* weight, const bf16* bias, bf16* y,
                            int64_t num_rows, int64_t inputs, int64_t outputs) {
    linear<bf16>({x, weight, bias, y, num_rows, inputs, outputs});
}

extern "C" void linear_f32(const float* x, const float* weight, const float* bias, float* y,
                           int64_t num_rows, int64_t inputs, int64_t outputs) {
    linear<float>({x, weight, bias, y, num_rows, inputs, outputs});
}
