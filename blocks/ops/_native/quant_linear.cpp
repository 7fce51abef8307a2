// y = x @ weight.T + bias for few rows of x and a weight in eight or four bits, and the weight itself
// as plain numbers. Every stored byte is read from memory once.
//
// One tile is R rows of weight by M rows of x. Each of its R * M results has a vector of partial sums
// of a group, fed in order of the inputs; it is multiplied by the group's scale and added to the
// result's vector, which is summed at the end in a fixed tree. The order of additions of a result is
// the same in every tile shape: a row of y does not depend on the other rows. Where x has more rows
// than a tile, the weight rows are decoded once, into a buffer that stays in cache.
#include <vector>

#include "formats.h"

namespace {

using namespace formats;

constexpr int kTileOutputs = 4;               // R: with 5 rows of bf16, 20 sums + 8 vectors of weight +
constexpr int kTileRows = 5;                  // M: 1 input of 32 vector registers
constexpr int64_t kSerialProducts = 1 << 16;  // below, a parallel region costs more than it saves

struct Weight {
    const uint8_t* values;  // [outputs, stored bytes of a row]
    const float* scales;    // [row groups, groups]
    const uint8_t* zeros;   // like scales, or null
    int64_t outputs, inputs, group_rows, group_columns, groups;

    int64_t at(int64_t out, int64_t group) const { return out / group_rows * groups + group; }
    float zero(int64_t at) const { return zeros ? zeros[at] : 8.0f; }
};

template <class T>
struct Problem {
    Weight w;
    const T* x;     // [num_rows, padded], zeros behind the last column
    const T* bias;  // [outputs] or null
    T* y;           // [num_rows, outputs]
    int64_t num_rows, padded;
};

// Results of weight rows [out, out + R), stored from `stored` on, for rows [row, row + M) of x.
template <class F, class T, int R, int M>
void tile(const Problem<T>& p, const uint8_t* stored, int64_t out, int64_t row) {
    using S = Step<T>;
    const Weight& w = p.w;
    const T* x = p.x + row * p.padded;
    const int64_t row_bytes = F::row_bytes(w.inputs), whole = row_bytes / F::kBytes * kRun;
    f32x16 sums[R][M] = {};
    for (int64_t group = 0; group < w.groups; ++group) {
        int64_t k = group * w.group_columns;
        const int64_t end = std::min(w.inputs, k + w.group_columns);
        f32x16 parts[R][M] = {};
        float zeros[R];
        for (int r = 0; r < R; ++r) zeros[r] = w.zero(w.at(out + r, group));
        const auto add = [&](const Run<T>* weights) {
#pragma GCC unroll 8
            for (int v = 0; v < Run<T>::kVectors; ++v) {
#pragma GCC unroll 8
                for (int i = 0; i < M; ++i) {
                    const auto input = S::load(x + i * p.padded + k + v * S::kInputs);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r)
                        parts[r][i] = S::add(parts[r][i], weights[r].vectors[v], input);
                }
            }
        };
        for (; k < std::min(end, whole); k += kRun) {
            Run<T> weights[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const uint8_t* from = stored + r * row_bytes + k / kRun * F::kBytes;
                F(zeros[r]).decode(from, weights[r]);
                __builtin_prefetch(from + R * row_bytes);  // of the next tile
            }
            add(weights);
        }
        if (k < end) {
            Run<T> weights[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const int64_t from = k / kRun * F::kBytes;
                const uint8_t* last = stored + r * row_bytes + from;
                decode_last(F(zeros[r]), last, row_bytes - from, weights[r]);
            }
            add(weights);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i) sums[r][i] += parts[r][i] * w.scales[w.at(out + r, group)];
        }
    }
    for (int i = 0; i < M; ++i) {
        for (int r = 0; r < R; ++r) {
            const float bias = p.bias ? lanes::load_one(p.bias + out + r) : 0.0f;
            T* y = p.y + (row + i) * w.outputs + out + r;
            lanes::store_one(y, lanes::sum(sums[r][i]) + bias);
        }
    }
}

template <class F, class T, int R>
void pass(const Problem<T>& p, const uint8_t* stored, int64_t out, int64_t row, int64_t size) {
    if constexpr (R == 1) {  // the last few outputs: not worth code of their own for each size
        for (int64_t i = 0; i < size; ++i) tile<F, T, R, 1>(p, stored, out, row + i);
    } else {
        switch (size) {
            case 1: return tile<F, T, R, 1>(p, stored, out, row);
            case 2: return tile<F, T, R, 2>(p, stored, out, row);
            case 3: return tile<F, T, R, 3>(p, stored, out, row);
            case 4: return tile<F, T, R, 4>(p, stored, out, row);
            default: return tile<F, T, R, kTileRows>(p, stored, out, row);
        }
    }
}

// Calls use(row, column, scale index, numbers) for every run of rows [begin, end).
template <class F, class T, class Use>
inline void decode_rows(const Weight& w, int64_t begin, int64_t end, Use use) {
    const int64_t row_bytes = F::row_bytes(w.inputs), whole = row_bytes / F::kBytes * kRun;
    for (int64_t out = begin; out < end; ++out) {
        const uint8_t* row = w.values + out * row_bytes;
        for (int64_t group = 0; group < w.groups; ++group) {
            const int64_t at = w.at(out, group);
            const F format(w.zero(at));
            int64_t k = group * w.group_columns;
            const int64_t last = std::min(w.inputs, k + w.group_columns);
            for (; k < last; k += kRun) {
                const int64_t from = k / kRun * F::kBytes;
                Run<T> run;
                if (k < whole) format.decode(row + from, run);
                else decode_last(format, row + from, row_bytes - from, run);
                __builtin_prefetch(row + from + (end - begin) * row_bytes);
                use(out, k, at, run);
            }
        }
    }
}

// All rows of x against weight rows [out, out + R), in passes of nearly equal size.
template <class F, class T, int R>
void all_rows(const Problem<T>& p, int64_t out, T* buffer) {
    const Weight& w = p.w;
    const uint8_t* stored = w.values + out * F::row_bytes(w.inputs);
    if (p.num_rows <= kTileRows) return pass<F, T, R>(p, stored, out, 0, p.num_rows);
    decode_rows<F, T>(w, out, out + R, [&](int64_t r, int64_t k, int64_t, const Run<T>& run) {
        std::memcpy(buffer + (r - out) * p.padded + k, run.vectors, kRun * sizeof(T));
    });
    const int64_t passes = (p.num_rows + kTileRows - 1) / kTileRows;
    int64_t row = 0;
    for (int64_t i = 0; i < passes; ++i) {
        const int64_t size = (p.num_rows - row) / (passes - i);
        pass<Decoded<T>, T, R>(p, (const uint8_t*)buffer, out, row, size);
        row += size;
    }
}

template <class F, class T>
void linear(const Problem<T>& p) {
    const int64_t tiles = p.w.outputs / kTileOutputs;
    const int64_t products = p.num_rows * p.w.inputs * p.w.outputs;
    if (p.num_rows == 0) return;
#pragma omp parallel if (products > kSerialProducts)
    {
        std::vector<T> buffer(p.num_rows > kTileRows ? kTileOutputs * p.padded : 0);
#pragma omp for schedule(static) nowait
        for (int64_t t = 0; t < tiles; ++t)
            all_rows<F, T, kTileOutputs>(p, t * kTileOutputs, buffer.data());
#pragma omp for schedule(static)
        for (int64_t out = tiles * kTileOutputs; out < p.w.outputs; ++out)
            all_rows<F, T, 1>(p, out, buffer.data());
    }
}

// Rows [begin, end) of the weight as plain numbers, contiguous from `to` on.
template <class F, class T>
void plain(const Weight& w, int64_t begin, int64_t end, T* to) {
#pragma omp parallel for schedule(static) if ((end - begin) * w.inputs > kSerialProducts)
    for (int64_t out = begin; out < end; ++out) {
        T* row = to + (out - begin) * w.inputs;
        const auto store = [&](int64_t, int64_t k, int64_t at, const Run<float>& run) {
            for (int64_t v = 0; v < 4 && k + 16 * v < w.inputs; ++v) {
                const int64_t left = w.inputs - k - 16 * v;
                const f32x16 scaled = run.vectors[v] * w.scales[at];
                if (left >= lanes::kLanes) lanes::store(row + k + 16 * v, scaled);
                else lanes::store_some(row + k + 16 * v, scaled, left);
            }
        };
        decode_rows<F, float>(w, out, out + 1, store);
    }
}

enum { kInt8, kFp8, kInt4 };

template <class T>
void quant_linear(const T* x, const Weight& w, int format, const T* bias, T* y, int64_t num_rows) {
    const int64_t padded = runs(w.inputs) * kRun;
    std::vector<T> copy(padded == w.inputs ? 0 : num_rows * padded);
    for (int64_t row = 0; row * padded < (int64_t)copy.size(); ++row)
        std::memcpy(copy.data() + row * padded, x + row * w.inputs, w.inputs * sizeof(T));
    const Problem<T> p{w, copy.empty() ? x : copy.data(), bias, y, num_rows, padded};
    if (format == kInt8) linear<Int8>(p);
    else if (format == kFp8) linear<Fp8>(p);
    else linear<Int4>(p);
}

template <class T>
void dequantize(const Weight& w, int format, int64_t begin, int64_t end, T* to) {
    if (format == kInt8) plain<Int8>(w, begin, end, to);
    else if (format == kFp8) plain<Fp8>(w, begin, end, to);
    else plain<Int4>(w, begin, end, to);
}

}  // namespace

#define FUNCTIONS(T, suffix)                                                                       \
    extern "C" void quant_linear_##suffix(                                                         \
        const uint8_t* values, const float* scales, const uint8_t* zeros, int64_t outputs,         \
        int64_t inputs, int64_t group_rows, int64_t group_columns, int64_t groups, int format,     \
        const T* x, const T* bias, T* y, int64_t num_rows) {                                       \
        const Weight w{values, scales, zeros, outputs, inputs, group_rows, group_columns, groups}; \
        quant_linear<T>(x, w, format, bias, y, num_rows);                                          \
    }                                                                                              \
    extern "C" void dequantize_##suffix(                                                           \
        const uint8_t* values, const float* scales, const uint8_t* zeros, int64_t outputs,         \
        int64_t inputs, int64_t group_rows, int64_t group_columns, int64_t groups, int format,     \
        int64_t begin, int64_t end, T* to) {                                                       \
        const Weight w{values, scales, zeros, outputs, inputs, group_rows, group_columns, groups}; \
        dequantize<T>(w, format, begin, end, to);                                                  \
    }

FUNCTIONS(bf16, bf16)
FUNCTIONS(float, f32)
