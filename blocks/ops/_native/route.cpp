// The experts of every token and their weights, and rows sorted by expert: a counting sort.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "lanes.h"

namespace {

using lanes::bf16;

constexpr int64_t kSerialScores = 1 << 14;  // below, a parallel region costs more than it saves

struct Choice {
    const float* bias;  // [num_experts] or null; for the choice only
    int32_t* experts;   // [num_tokens, top_k]
    float* weights;     // [num_tokens, top_k]
    int64_t num_experts, top_k;
    bool softmax, normalize;
    float scale;
};

// Largest first, the lower id among equals; NaN counts as the lowest number.
template <class T>
void choose(const Choice& c, const T* logits, int32_t* experts, float* weights, float* scores,
            float* order) {
    float top = -INFINITY, total = 0.0f;
    for (int64_t e = 0; e < c.num_experts; ++e) {
        scores[e] = lanes::load_one(logits + e);
        if (scores[e] > top) top = scores[e];
    }
    for (int64_t e = 0; e < c.num_experts; ++e) {
        scores[e] = c.softmax ? std::exp(scores[e] - top) : 1.0f / (1.0f + std::exp(-scores[e]));
        total += scores[e];
    }
    for (int64_t e = 0; e < c.num_experts; ++e) {
        if (c.softmax) scores[e] /= total;
        const float wanted = c.bias ? scores[e] + c.bias[e] : scores[e];
        order[e] = wanted >= -FLT_MAX ? wanted : -FLT_MAX;
    }
    float sum = 0.0f;
    for (int64_t k = 0; k < c.top_k; ++k) {
        const int64_t best = std::max_element(order, order + c.num_experts) - order;
        order[best] = -INFINITY;
        experts[k] = static_cast<int32_t>(best);
        weights[k] = scores[best];
        sum += scores[best];
    }
    for (int64_t k = 0; k < c.top_k; ++k)
        weights[k] = c.scale * (c.normalize ? weights[k] / sum : weights[k]);
}

template <class T>
void route(const Choice& c, const T* logits, int32_t* tokens, int32_t* places, int32_t* offsets,
           int64_t num_tokens) {
#pragma omp parallel if (num_tokens * c.num_experts > kSerialScores)
    {
        std::vector<float> scores(c.num_experts), order(c.num_experts);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < num_tokens; ++t)
            choose(c, logits + t * c.num_experts, c.experts + t * c.top_k, c.weights + t * c.top_k,
                   scores.data(), order.data());
    }
    const int64_t num_rows = num_tokens * c.top_k;
    std::fill(offsets, offsets + c.num_experts + 1, 0);
    for (int64_t row = 0; row < num_rows; ++row) ++offsets[c.experts[row] + 1];
    for (int64_t e = 0; e < c.num_experts; ++e) offsets[e + 1] += offsets[e];
    std::vector<int32_t> next(offsets, offsets + c.num_experts);
    for (int64_t row = 0; row < num_rows; ++row) {
        const int32_t place = next[c.experts[row]]++;
        places[row] = place;
        tokens[place] = static_cast<int32_t>(row / c.top_k);
    }
}

}  // namespace

#define FUNCTION(T, suffix)                                                                      \
    extern "C" void route_##suffix(const T* logits, const float* bias, int32_t* experts,         \
                                   float* weights, int32_t* tokens, int32_t* places,             \
                                   int32_t* offsets, int64_t num_tokens, int64_t num_experts,    \
                                   int64_t top_k, int softmax, int normalize, float scale) {     \
        const Choice c{bias,  experts,      weights,        num_experts,                         \
                       top_k, softmax != 0, normalize != 0, scale};                              \
        route<T>(c, logits, tokens, places, offsets, num_tokens);                                \
    }

FUNCTION(bf16, bf16)
FUNCTION(float, f32)
