// Draw one token per row without sorting. Most tokens are far too unlikely to matter to top-k or
// top-p: the few that may are gathered first, and the exact threshold is found among them by
// bisection over the bits of fp32. The race then looks at survivors only.
#include <algorithm>
#include <vector>

#include "lanes.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

using lanes::bf16;
using lanes::f32x16;
using lanes::i32x16;
using lanes::kLanes;

typedef float f32x8 __attribute__((vector_size(32)));
typedef double f64x8 __attribute__((vector_size(64)));
typedef uint64_t u64x8 __attribute__((vector_size(64)));

constexpr int64_t kSerialLogits = 1 << 16;  // below, a parallel region costs more than it saves
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

inline bool any(i32x16 mask) {
#ifdef __AVX512F__
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
    int32_t found = 0;
    for (int i = 0; i < kLanes; ++i) found |= mask[i];
    return found != 0;
#endif
}

// The finaliser of SplitMix64 (Stafford's variant 13), on numbers or vectors.
template <class U>
inline U mix(U x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

inline uint64_t stream_of(int64_t seed, int64_t position) {
    const uint64_t start = mix(static_cast<uint64_t>(seed) + kGolden);
    return mix(start + static_cast<uint64_t>(position) * kGolden);
}

// Sixteen numbers in (0, 1), the top 32 of 64 random bits each.
inline f32x16 uniform(uint64_t stream, const int32_t* ids) {
    typedef int32_t i32x8 __attribute__((vector_size(32)));
    f32x8 halves[2];
    for (int half = 0; half < 2; ++half) {
        i32x8 id;
        std::memcpy(&id, ids + 8 * half, sizeof id);
        const u64x8 counter = (__builtin_convertvector(id, u64x8) + 1) * kGolden;
        const u64x8 high = mix(stream + counter) >> 32;
        f64x8 u = (__builtin_convertvector(high, f64x8) + 0.5) * 0x1p-32;
        u = u < 1 - 0x1p-24 ? u : f64x8{} + (1 - 0x1p-24);
        halves[half] = __builtin_convertvector(u, f32x8);
    }
    f32x16 joined;
    std::memcpy(&joined, halves, sizeof joined);
    return joined;
}

inline int32_t key_of(float x) {  // orders like x
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

inline float of_key(int32_t key) {
    const int32_t bits = key >= 0 ? key : key ^ 0x7fffffff;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

struct Rules {
    float temperature;
    int64_t top_k;
    float top_p, min_p;
};

// Tokens still in the race, in order of their ids, padded to whole vectors with weight 0.
struct Tokens {
    std::vector<float> logits, weights;
    std::vector<int32_t> ids;
    int64_t count = 0;

    void reserve(int64_t vocab_size) {
        const size_t size = (vocab_size + 2 * kLanes) / kLanes * kLanes;
        if (logits.size() < size) logits.resize(size), weights.resize(size), ids.resize(size);
    }
    void pad() {
        for (int64_t i = count; i % kLanes != 0; ++i) logits[i] = -INFINITY, weights[i] = 0, ids[i] = 0;
    }
    int64_t padded() const { return (count + kLanes - 1) / kLanes * kLanes; }
};

template <class T>
inline f32x16 clean(const T* row, int64_t i, int64_t vocab_size) {
    const int64_t left = vocab_size - i;
    f32x16 x;
    if (left >= kLanes) {
        x = lanes::load(row + i);
    } else {
        x = lanes::load_some(row + i, left);
        for (int64_t lane = left; lane < kLanes; ++lane) x[lane] = -INFINITY;
    }
    x = x != x ? lanes::splat(-INFINITY) : x;
    return x == 0.0f ? lanes::splat(0.0f) : x;  // one zero, not two
}

// Largest logit of a row and its lowest id; id -1 when nothing is above minus infinity.
template <class T>
int64_t argmax(const T* row, int64_t vocab_size, float* top) {
    f32x16 best = lanes::splat(-INFINITY);
    for (int64_t i = 0; i < vocab_size; i += kLanes) {
        const f32x16 x = clean(row, i, vocab_size);
        best = x > best ? x : best;
    }
    *top = -INFINITY;
    for (int lane = 0; lane < kLanes; ++lane) *top = std::max(*top, best[lane]);
    if (*top == -INFINITY) return -1;
    for (int64_t i = 0;; i += kLanes) {
        const f32x16 x = clean(row, i, vocab_size);
        if (!any(x == *top)) continue;
        for (int lane = 0; lane < kLanes; ++lane)
            if (x[lane] == *top) return i + lane;
    }
}

template <class T>
void read_row(const T* row, int64_t vocab_size, float top, float temperature, Tokens* all) {
    all->reserve(vocab_size);
    all->count = vocab_size;
    for (int64_t i = 0; i < vocab_size; i += kLanes) {
        const f32x16 x = clean(row, i, vocab_size);
        const f32x16 below = x == top ? lanes::splat(0.0f) : x - top;
        lanes::store(&all->logits[i], x);
        lanes::store(&all->weights[i], lanes::exp(below / temperature));
    }
    // Ids count up from 0, and stay so until tokens are gathered.
    for (int64_t i = 0; i < all->padded(); ++i) all->ids[i] = i;
}

int64_t count_from(const Tokens& tokens, float logit) {
    i32x16 counts = {};
    for (int64_t i = 0; i < tokens.padded(); i += kLanes)
        counts -= lanes::load(&tokens.logits[i]) >= logit;  // true is -1
    int64_t total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += counts[lane];
    return total;
}

double mass_from(const Tokens& tokens, float logit) {
    f64x8 low = {}, high = {};
    for (int64_t i = 0; i < tokens.padded(); i += kLanes) {
        const f32x16 x = lanes::load(&tokens.logits[i]);
        const f32x16 w = x >= logit ? lanes::load(&tokens.weights[i]) : lanes::splat(0.0f);
        const f32x8 first = __builtin_shufflevector(w, w, 0, 1, 2, 3, 4, 5, 6, 7);
        const f32x8 second = __builtin_shufflevector(w, w, 8, 9, 10, 11, 12, 13, 14, 15);
        low += __builtin_convertvector(first, f64x8);
        high += __builtin_convertvector(second, f64x8);
    }
    low += high;
    double total = 0;
    for (int lane = 0; lane < 8; ++lane) total += low[lane];
    return total;
}

// The tokens of `from` at or above a logit. `into` may be `from`.
void gather(const Tokens& from, float logit, Tokens* into) {
    into->reserve(from.count);
    int64_t count = 0;
    const int64_t size = from.padded();
    for (int64_t i = 0; i < size; i += kLanes) {
        const i32x16 kept = lanes::load(&from.logits[i]) >= logit;
        if (!any(kept)) continue;
        const int64_t end = std::min(i + kLanes, from.count);
        for (int64_t j = i; j < end; ++j) {
            into->logits[count] = from.logits[j];
            into->weights[count] = from.weights[j];
            into->ids[count] = from.ids[j];
            count += into->logits[count] >= logit;
        }
    }
    into->count = count;
    into->pad();
}

// The largest logit from which on tokens weigh enough; all of them together do.
template <class Enough>
float threshold(const Tokens& tokens, float top, Enough enough) {
    int64_t low = key_of(-INFINITY), high = key_of(top);
    while (low < high) {
        const int64_t middle = (low + high + 1) >> 1;
        if (enough(tokens, of_key(middle))) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return of_key(low);
}

void keep_top_k(Tokens* tokens, float top, int64_t top_k) {
    const float last = threshold(*tokens, top, [top_k](const Tokens& t, float logit) {
        return count_from(t, logit) >= top_k;
    });
    gather(*tokens, last, tokens);
}

// The tokens that decide are nearly always within a few temperatures of the top: look there first.
void keep_top_p(Tokens* tokens, float top, float temperature, float top_p, Tokens* near) {
    const double wanted = static_cast<double>(top_p) * mass_from(*tokens, -INFINITY);
    for (const float distance : {3.0f, 9.0f, INFINITY}) {
        gather(*tokens, std::isinf(distance) ? -INFINITY : top - distance * temperature, near);
        if (mass_from(*near, -INFINITY) >= wanted) break;
    }
    const float last = threshold(*near, top, [wanted](const Tokens& t, float logit) {
        return mass_from(t, logit) >= wanted;
    });
    gather(*near, last, tokens);
}

// The token that arrives first: largest weight / time. A waiting time -log(1 - u) is at least u,
// so the logarithm is taken only where weight / u could still win.
int64_t race(const Tokens& tokens, uint64_t stream, float min_p) {
    float fastest = -1.0f;
    int64_t winner = -1;
    for (int64_t i = 0; i < tokens.padded(); i += kLanes) {
        const f32x16 u = uniform(stream, &tokens.ids[i]);
        const f32x16 w = lanes::load(&tokens.weights[i]);
        if (!any(w / u > fastest)) continue;
        const int64_t end = std::min<int64_t>(kLanes, tokens.count - i);
        for (int lane = 0; lane < end; ++lane) {
            if (!(w[lane] / u[lane] > fastest) || w[lane] < min_p) continue;
            const float time = static_cast<float>(-std::log1p(-static_cast<double>(u[lane])));
            if (w[lane] / time > fastest) fastest = w[lane] / time, winner = tokens.ids[i + lane];
        }
    }
    return winner;
}

template <class T>
int64_t draw(const T* row, int64_t vocab_size, const Rules& rules, int64_t seed, int64_t position) {
    float top;
    const int64_t greedy = argmax(row, vocab_size, &top);
    if (greedy < 0 || rules.temperature == 0.0f) return greedy;
    static thread_local Tokens tokens, near;
    read_row(row, vocab_size, top, rules.temperature, &tokens);
    if (rules.top_k > 0 && rules.top_k < vocab_size) keep_top_k(&tokens, top, rules.top_k);
    if (rules.top_p < 1.0f) keep_top_p(&tokens, top, rules.temperature, rules.top_p, &near);
    return race(tokens, stream_of(seed, position), rules.min_p);
}

bool in_range(const Rules& r) {  // false for NaN
    return r.temperature >= 0 && r.temperature < INFINITY && r.top_k >= 0 && r.top_p > 0 &&
           r.top_p <= 1 && r.min_p >= 0 && r.min_p <= 1;
}

template <class T>
int sample(const T* logits, int64_t row_stride, const float* temperature, const int64_t* top_k,
            const float* top_p, const float* min_p, const int64_t* seeds, const int64_t* positions,
            int64_t* drawn, int64_t num_rows, int64_t vocab_size) {
    for (int64_t r = 0; r < num_rows; ++r)
        if (!in_range({temperature[r], top_k[r], top_p[r], min_p[r]})) return 1;
#pragma omp parallel for schedule(dynamic) if (num_rows > 1 && num_rows * vocab_size > kSerialLogits)
    for (int64_t r = 0; r < num_rows; ++r) {
        const Rules rules = {temperature[r], top_k[r], top_p[r], min_p[r]};
        drawn[r] = draw(logits + r * row_stride, vocab_size, rules, seeds[r], positions[r]);
    }
    return 0;
}

}  // namespace

// Returns 0, or 1 when a parameter is out of range; then nothing is drawn.
#define DEFINE(T, suffix)                                                                         \
    extern "C" int sample_##suffix(                                                              \
        const T* logits, int64_t row_stride, const float* temperature, const int64_t* top_k,      \
        const float* top_p, const float* min_p, const int64_t* seeds, const int64_t* positions,   \
        int64_t* drawn, int64_t num_rows, int64_t vocab_size) {                                   \
        return sample<T>(logits, row_stride, temperature, top_k, top_p, min_p, seeds, positions,  \
                         drawn, num_rows, vocab_size);                                            \
    }

DEFINE(bf16, bf16)
DEFINE(float, f32)
