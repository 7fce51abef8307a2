// Gradients of RMSNorm and LayerNorm. A chunk of rows keeps its part of the weight's and the bias's
// gradient in fp32; the parts are then added up in order, so threads do not change a bit.
#include "rows.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using rows::for_lanes;
using rows::get;
using rows::put;

template <class T>
struct Gradients {
    const T *dy, *dtotal, *x, *weight;  // dtotal, the gradient of the residual sum, may be null
    const float *mean, *rstd;           // mean is null for RMSNorm
    T *dx, *dweight, *dbias;            // dbias may be null
    float* partials;                    // [2, num_chunks, hidden_size]
    int64_t num_rows, hidden_size, chunk_rows, num_chunks;
    float weight_offset;
    bool round_first;
};

template <class T>
void one_row(const Gradients<T>& g, int64_t row, float* dweight, float* dbias) {
    const T* dy = g.dy + row * g.hidden_size;
    const T* x = g.x + row * g.hidden_size;
    T* dx = g.dx + row * g.hidden_size;
    const T* dtotal = g.dtotal ? g.dtotal + row * g.hidden_size : nullptr;
    const float mean = g.mean ? g.mean[row] : 0.0f, rstd = g.rstd[row];
    f32x16 products = {}, sums = {};
    for_lanes(g.hidden_size, [&](int64_t c, int64_t n) {
        const f32x16 d = get(dy + c, n) * (get(g.weight + c, n) + g.weight_offset);
        products += d * ((get(x + c, n) - mean) * rstd);
        sums += d;
    });
    const float size = static_cast<float>(g.hidden_size);
    const float projection = lanes::sum(products) / size;
    const float centre = g.mean ? lanes::sum(sums) / size : 0.0f;
    for_lanes(g.hidden_size, [&](int64_t c, int64_t n) {
        const f32x16 wanted = get(dy + c, n);
        const f32x16 d = wanted * (get(g.weight + c, n) + g.weight_offset);
        f32x16 scaled = (get(x + c, n) - mean) * rstd;
        f32x16 found = (d - scaled * projection - centre) * rstd;
        if (dtotal) found += get(dtotal + c, n);
        put(dx + c, found, n);
        if (g.round_first) scaled = lanes::rounded(scaled, x);
        put(dweight + c, get(dweight + c, n) + wanted * scaled, n);
        if (g.dbias) put(dbias + c, get(dbias + c, n) + wanted, n);
    });
}

template <class T>
void add_parts(const Gradients<T>& g, const float* parts, T* out) {
    for_lanes(g.hidden_size, [&](int64_t c, int64_t n) {
        f32x16 sums = {};
        for (int64_t chunk = 0; chunk < g.num_chunks; ++chunk)
            sums += get(parts + chunk * g.hidden_size + c, n);
        put(out + c, sums, n);
    });
}

template <class T>
void backward(const Gradients<T>& g) {
    float* bias_parts = g.partials + g.num_chunks * g.hidden_size;
    const bool large = g.num_rows * g.hidden_size > rows::kSerialElements;
#pragma omp parallel for schedule(static) if (large)
    for (int64_t chunk = 0; chunk < g.num_chunks; ++chunk) {
        float* dweight = g.partials + chunk * g.hidden_size;
        float* dbias = bias_parts + chunk * g.hidden_size;
        std::memset(dweight, 0, g.hidden_size * sizeof(float));
        if (g.dbias) std::memset(dbias, 0, g.hidden_size * sizeof(float));
        const int64_t end = (chunk + 1) * g.chunk_rows;
        for (int64_t row = chunk * g.chunk_rows; row < end && row < g.num_rows; ++row)
            one_row(g, row, dweight, dbias);
    }
    add_parts(g, g.partials, g.dweight);
    if (g.dbias) add_parts(g, bias_parts, g.dbias);
}

}  // namespace

#define DEFINE(T, suffix)                                                                         \
    extern "C" void norm_backward_##suffix(                                                       \
        const T* dy, const T* dtotal, const T* x, const T* weight, const float* mean,             \
        const float* rstd, T* dx, T* dweight, T* dbias, float* partials, int64_t num_rows,        \
        int64_t hidden_size, int64_t chunk_rows, float weight_offset) {                           \
        backward<T>({dy, dtotal, x, weight, mean, rstd, dx, dweight, dbias, partials, num_rows,   \
                     hidden_size, chunk_rows, (num_rows + chunk_rows - 1) / chunk_rows,           \
                     weight_offset, !mean && weight_offset == 0.0f});                             \
    }

DEFINE(bf16, bf16)
DEFINE(float, f32)
