// RMSNorm and LayerNorm of rows, with the residual addition; one pass to add and measure, one to
// scale. A row is summed in a fixed order whatever the number of rows or threads.
#include "rows.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using lanes::kLanes;
using rows::for_lanes;
using rows::get;
using rows::put;

template <class T>
struct Rows {
    const T *x, *residual, *weight, *bias;  // residual and bias may be null
    T *y, *total;                           // total is null without residual
    float *mean, *rstd;                     // null where nobody wants them
    int64_t num_rows, hidden_size;
    float eps, weight_offset;
};

// The row to be normed: x itself, or the rounded sum with the residual, written to total first.
template <class T>
const T* summed_row(const Rows<T>& rows, int64_t row) {
    const T* x = rows.x + row * rows.hidden_size;
    if (!rows.residual) return x;
    const T* residual = rows.residual + row * rows.hidden_size;
    T* total = rows.total + row * rows.hidden_size;
    for_lanes(rows.hidden_size, [&](int64_t c, int64_t n) {
        put(total + c, get(x + c, n) + get(residual + c, n), n);
    });
    return total;
}

template <class T>
void rms_row(const Rows<T>& rows, int64_t row) {
    const T* x = summed_row(rows, row);
    T* y = rows.y + row * rows.hidden_size;
    f32x16 squares = {};
    for_lanes(rows.hidden_size, [&](int64_t c, int64_t n) {
        const f32x16 value = get(x + c, n);
        squares += value * value;
    });
    const float mean = lanes::sum(squares) / static_cast<float>(rows.hidden_size);
    const float scale = 1.0f / std::sqrt(mean + rows.eps);
    if (rows.rstd) rows.rstd[row] = scale;
    if (rows.weight_offset == 0.0f) {  // the Llama order: round, then multiply by the weight
        for_lanes(rows.hidden_size, [&](int64_t c, int64_t n) {
            const f32x16 scaled = lanes::rounded(get(x + c, n) * scale, x);
            put(y + c, scaled * get(rows.weight + c, n), n);
        });
    } else {
        for_lanes(rows.hidden_size, [&](int64_t c, int64_t n) {
            const f32x16 weight = get(rows.weight + c, n) + rows.weight_offset;
            put(y + c, get(x + c, n) * scale * weight, n);
        });
    }
}

template <class T>
void layer_row(const Rows<T>& rows, int64_t row) {
    const T* x = summed_row(rows, row);
    T* y = rows.y + row * rows.hidden_size;
    const float size = static_cast<float>(rows.hidden_size);
    f32x16 sums = {}, squares = {};
    for_lanes(rows.hidden_size, [&](int64_t c, int64_t n) { sums += get(x + c, n); });
    const float mean = lanes::sum(sums) / size;
    for_lanes(rows.hidden_size, [&](int64_t c, int64_t n) {
        f32x16 centred = get(x + c, n) - mean;
        for (int64_t lane = n; lane < kLanes; ++lane) centred[lane] = 0.0f;
        squares += centred * centred;
    });
    const float scale = 1.0f / std::sqrt(lanes::sum(squares) / size + rows.eps);
    if (rows.mean) rows.mean[row] = mean;
    if (rows.rstd) rows.rstd[row] = scale;
    for_lanes(rows.hidden_size, [&](int64_t c, int64_t n) {
        f32x16 value = (get(x + c, n) - mean) * scale * get(rows.weight + c, n);
        if (rows.bias) value += get(rows.bias + c, n);
        put(y + c, value, n);
    });
}

template <class T>
void every_row(void (*one)(const Rows<T>&, int64_t), const Rows<T>& rows) {
    const bool large = rows.num_rows * rows.hidden_size > ::rows::kSerialElements;
#pragma omp parallel for schedule(static) if (large)
    for (int64_t row = 0; row < rows.num_rows; ++row) one(rows, row);
}

}  // namespace

#define DEFINE(T, suffix)                                                                         \
    extern "C" void norm_##suffix(const T* x, const T* residual, const T* weight, const T* bias,  \
                                  T* y, T* total, float* mean, float* rstd, int64_t num_rows,     \
                                  int64_t hidden_size, float eps, float weight_offset,            \
                                  int is_layer) {                                                 \
        every_row<T>(is_layer ? layer_row<T> : rms_row<T>,                                        \
                     {x, residual, weight, bias, y, total, mean, rstd, num_rows, hidden_size,     \
                      eps, weight_offset});                                                       \
    }

DEFINE(bf16, bf16)
DEFINE(float, f32)
