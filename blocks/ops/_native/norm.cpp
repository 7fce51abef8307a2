// RMSNorm and LayerNorm of rows, with the residual addition; one pass to add and measure, one to
// scale. A row is summed in a fixed order whatever the number of rows or threads.
#include "lanes.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using lanes::kLanes;

constexpr int64_t kSerialElements = 1 << 17;  // below, a parallel region costs more than it saves

template <class T>
struct Rows {
    const T *x, *residual, *weight, *bias;  // residual and bias may be null
    T *y, *total;                           // total is null without residual
    int64_t num_rows, hidden_size;
    float eps, weight_offset;
};

// Calls body(column, count) for every run of up to 16 columns.
template <class Body>
inline void for_lanes(int64_t hidden_size, Body body) {
    int64_t column = 0;
    for (; column + kLanes <= hidden_size; column += kLanes) body(column, kLanes);
    if (column < hidden_size) body(column, hidden_size - column);
}

template <class T>
inline f32x16 get(const T* from, int64_t count) {
    return count == kLanes ? lanes::load(from) : lanes::load_some(from, count);
}

template <class T>
inline void put(T* to, f32x16 value, int64_t count) {
    if (count == kLanes) {
        lanes::store(to, value);
    } else {
        lanes::store_some(to, value, count);
    }
}

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
    for_lanes(rows.hidden_size, [&](int64_t c, int64_t n) {
        f32x16 value = (get(x + c, n) - mean) * scale * get(rows.weight + c, n);
        if (rows.bias) value += get(rows.bias + c, n);
        put(y + c, value, n);
    });
}

template <class T>
void every_row(void (*one)(const Rows<T>&, int64_t), const Rows<T>& rows) {
    const bool large = rows.num_rows * rows.hidden_size > kSerialElements;
#pragma omp parallel for schedule(static) if (large)
    for (int64_t row = 0; row < rows.num_rows; ++row) one(rows, row);
}

}  // namespace

#define DEFINE(T, suffix)                                                                         \
    extern "C" void rms_norm_##suffix(const T* x, const T* residual, const T* weight, T* y,       \
                                      T* total, int64_t num_rows, int64_t hidden_size, float eps, \
                                      float weight_offset) {                                      \
        every_row<T>(rms_row<T>, {x, residual, weight, nullptr, y, total, num_rows, hidden_size,  \
                                  eps, weight_offset});                                           \
    }                                                                                             \
    extern "C" void layer_norm_##suffix(const T* x, const T* residual, const T* weight,           \
                                        const T* bias, T* y, T* total, int64_t num_rows,          \
                                        int64_t hidden_size, float eps) {                         \
        every_row<T>(layer_row<T>, {x, residual, weight, bias, y, total, num_rows, hidden_size,   \
                                    eps, 0.0f});                                                  \
    }

DEFINE(bf16, bf16)
DEFINE(float, f32)
