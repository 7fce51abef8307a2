// Rows of scores turned into loss, LSE and, where asked, gradient; grad may be scores itself.
// A row is looked at three times: its maximum; its exponentials, kept in a buffer of the thread;
// its gradient. Sums run in an order fixed by the row's length.
#include <vector>

#include "lanes.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using lanes::kLanes;

constexpr int64_t kSerialElements = 1 << 14;  // below, a parallel region costs more than it saves

struct Rule {
    int64_t ignore_index;
    float softcap, z_loss, label_smoothing;
};

struct Sums {
    float lse, total;  // total: of the scores, for label smoothing
};

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

inline f32x16 tanh(f32x16 x) {
    const f32x16 size = x < 0.0f ? -x : x;
    const f32x16 small = lanes::exp(-2.0f * size);
    const f32x16 result = (1.0f - small) / (1.0f + small);
    return x < 0.0f ? -result : result;
}

inline f32x16 capped(f32x16 x, float softcap) {
    return softcap == 0.0f ? x : softcap * tanh(x / softcap);
}

// Calls body(column, count) for every run of up to 16 columns.
template <class Body>
inline void for_lanes(int64_t length, Body body) {
    int64_t column = 0;
    for (; column + kLanes <= length; column += kLanes) body(column, kLanes);
    if (column < length) body(column, length - column);
}

// Lanes beyond `count` take `value`.
inline f32x16 pad(f32x16 x, int64_t count, float value) {
    for (int64_t lane = count; lane < kLanes; ++lane) x[lane] = value;
    return x;
}

template <class T>
float largest(const T* row, int64_t vocab_size, float softcap) {
    f32x16 top = lanes::splat(-INFINITY);
    for_lanes(vocab_size, [&](int64_t column, int64_t count) {
        const f32x16 x = pad(get(row + column, count), count, -INFINITY);
        top = x > top ? x : top;
    });
    float found = top[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) found = top[lane] > found ? top[lane] : found;
    return capped(lanes::splat(found), softcap)[0];  // the cap keeps the order
}

// exp(x - top) of the row into `weights` (where asked), and the sums. NaN scores are NaN sums.
template <class T>
Sums exponentials(const T* row, int64_t vocab_size, float top, float softcap, float* weights) {
    f32x16 sum = {}, total = {};
    const float shift = std::isinf(top) && top < 0 ? 0.0f : top;
    for_lanes(vocab_size, [&](int64_t column, int64_t count) {
        const f32x16 x = capped(get(row + column, count), softcap);
        const f32x16 weight = pad(lanes::exp(x - shift), count, 0.0f);
        sum += weight;
        total += pad(x, count, 0.0f);
        if (weights) lanes::store(weights + column, weight);
    });
    return {shift + std::log(lanes::sum(sum)), lanes::sum(total)};
}

template <class T>
void write_gradient(const T* row, T* grad, const float* weights, int64_t vocab_size, int64_t label,
                    float top, Sums sums, float slope, const Rule& rule) {
    const float shift = std::isinf(top) && top < 0 ? 0.0f : top;
    const float factor = slope * (1.0f + 2.0f * rule.z_loss * sums.lse) * std::exp(shift - sums.lse);
    const float share = rule.label_smoothing / vocab_size * slope;
    const float at = capped(lanes::splat(lanes::load_one(row + label)), rule.softcap)[0];
    for_lanes(vocab_size, [&](int64_t column, int64_t count) {
        f32x16 g = lanes::load(weights + column) * factor - share;
        if (rule.softcap != 0.0f) {
            const f32x16 t = tanh(get(row + column, count) / rule.softcap);
            g *= 1.0f - t * t;
        }
        put(grad + column, g, count);
    });
    float g = weights[label] * factor - share - (1.0f - rule.label_smoothing) * slope;
    if (rule.softcap != 0.0f) g *= 1.0f - (at / rule.softcap) * (at / rule.softcap);
    lanes::store_one(grad + label, g);
}

template <class T>
void loss_rows(const T* scores, int64_t scores_stride, T* grad, int64_t grad_stride,
               const int64_t* labels, const float* slopes, float* losses, float* lse,
               int64_t num_rows, int64_t vocab_size, Rule rule) {
#pragma omp parallel if (num_rows * vocab_size > kSerialElements)
    {
        std::vector<float> weights(grad ? vocab_size + kLanes : 0);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_rows; ++i) {
            const T* row = scores + i * scores_stride;
            T* out = grad ? grad + i * grad_stride : nullptr;
            const int64_t label = labels[i];
            const bool ignored = label == rule.ignore_index;
            if (ignored || label < 0 || label >= vocab_size) {
                losses[i] = lse[i] = ignored ? 0.0f : NAN;
                if (out) std::memset(out, 0, vocab_size * sizeof(T));
                continue;
            }
            const float top = largest(row, vocab_size, rule.softcap);
            const Sums sums = exponentials(row, vocab_size, top, rule.softcap,
                                           out ? weights.data() : nullptr);
            const float at = capped(lanes::splat(lanes::load_one(row + label)), rule.softcap)[0];
            float loss = sums.lse - (1.0f - rule.label_smoothing) * at;
            if (rule.label_smoothing != 0.0f) loss -= rule.label_smoothing / vocab_size * sums.total;
            if (rule.z_loss != 0.0f) loss += rule.z_loss * sums.lse * sums.lse;
            losses[i] = loss;
            lse[i] = sums.lse;
            if (out)
                write_gradient(row, out, weights.data(), vocab_size, label, top, sums,
                               slopes ? slopes[i] : 1.0f, rule);
        }
    }
}

}  // namespace

#define DEFINE(T, suffix)                                                                          \
    extern "C" void loss_rows_##suffix(                                                            \
        const T* scores, int64_t scores_stride, T* grad, int64_t grad_stride,                      \
        const int64_t* labels, const float* slopes, float* losses, float* lse, int64_t num_rows,   \
        int64_t vocab_size, int64_t ignore_index, float softcap, float z_loss,                     \
        float label_smoothing) {                                                                   \
        loss_rows<T>(scores, scores_stride, grad, grad_stride, labels, slopes, losses, lse,        \
                     num_rows, vocab_size, {ignore_index, softcap, z_loss, label_smoothing});      \
    }

DEFINE(bf16, bf16)
DEFINE(float, f32)
