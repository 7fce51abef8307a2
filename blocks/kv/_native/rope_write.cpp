// Norm and rotation of query and key and the write of key and value, one head at a time while it
// is in registers or the first cache. Rounding and order of sums are those of the separate
// operations: rms_norm, apply_rope, write_kv.

#include <algorithm>

#include "quantise.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using lanes::kLanes;

constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kChunk = 64;
constexpr int64_t kSerialElements = 1 << 16;  // below, a parallel region costs more than it saves

template <class T>
struct Heads {
  const T* first;
  int64_t token_stride, head_stride, count;  // strides in elements; each head is contiguous
  const T* norm;                             // weight of head_dim elements, or null
};

// What a head is divided by to be normed.
template <class T>
float norm_scale(const T* x, int64_t size, float eps) {
  f32x16 squares = {};
  lanes::for_lanes(size, [&](int64_t c, int64_t n) {
    const f32x16 value = lanes::get(x + c, n);
    squares += value * value;
  });
  return 1.0f / std::sqrt(lanes::sum(squares) / static_cast<float>(size) + eps);
}

// The normed head in fp32, rounded as it would be were it stored.
template <class T>
void norm(const T* x, const T* weight, float scale, float weight_offset, int64_t size, float* y) {
  if (weight_offset == 0.0f) {  // the Llama order: round, then multiply by the weight
    lanes::for_lanes(size, [&](int64_t c, int64_t n) {
      const f32x16 scaled = lanes::rounded(lanes::get(x + c, n) * scale, x);
      lanes::put(y + c, lanes::rounded(scaled * lanes::get(weight + c, n), x), n);
    });
  } else {
    lanes::for_lanes(size, [&](int64_t c, int64_t n) {
      const f32x16 factor = lanes::get(weight + c, n) + weight_offset;
      lanes::put(y + c, lanes::rounded(lanes::get(x + c, n) * scale * factor, x), n);
    });
  }
}

inline void copy(const float* from, float* to, int64_t count) {
  std::memcpy(to, from, count * sizeof(float));
}
inline void copy(const bf16* from, bf16* to, int64_t count) {
  std::memcpy(to, from, count * sizeof(bf16));
}
inline void copy(const float* from, bf16* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) lanes::store_one(to + i, from[i]);
}

// `head` may be `out`.
template <class From, class T>
void turn(const From* head, T* out, const float* cos, const float* sin, int64_t half,
          int64_t head_dim, int64_t interleaved) {
  int64_t i = 0;
  if (!interleaved) {
    for (; i + kLanes <= half; i += kLanes) {
      const f32x16 a = lanes::load(head + i), b = lanes::load(head + half + i);
      const f32x16 c = lanes::load(cos + i), s = lanes::load(sin + i);
      lanes::store(out + i, a * c - b * s);
      lanes::store(out + half + i, b * c + a * s);
    }
  }
  const int64_t first = interleaved ? 2 : 1, step = interleaved ? 1 : half;
  for (; i < half; ++i) {
    const float a = lanes::load_one(head + first * i), b = lanes::load_one(head + first * i + step);
    lanes::store_one(out + first * i, a * cos[i] - b * sin[i]);
    lanes::store_one(out + first * i + step, b * cos[i] + a * sin[i]);
  }
  const void *from = head, *to = out;
  if (from != to && head_dim > 2 * half) copy(head + 2 * half, out + 2 * half, head_dim - 2 * half);
}

struct Sizes {
  int64_t num_tokens, head_dim, rotary_dim, max_positions, num_slots, block_size;
  int64_t interleaved, format;  // -1: the cache has the element type of the inputs
  float eps, weight_offset;
};

// Norm and turn the heads of one token; place(h) says where head h goes, done(h) takes it there.
template <class T, class Place, class Done>
void turn_heads(const Heads<T>& heads, int64_t token, const float* cos, const Sizes& sizes,
                Place place, Done done) {
  const int64_t half = sizes.rotary_dim / 2, head_dim = sizes.head_dim;
  alignas(64) float normed[kMaxHeadDim], scales[kChunk];
  for (int64_t start = 0; start < heads.count; start += kChunk) {
    const int64_t stop = std::min(start + kChunk, heads.count);
    const T* first = heads.first + token * heads.token_stride;
    for (int64_t h = start; heads.norm && h < stop; ++h)  // apart: the roots' latencies overlap
      scales[h - start] = norm_scale(first + h * heads.head_stride, head_dim, sizes.eps);
    for (int64_t h = start; h < stop; ++h) {
      const T* head = first + h * heads.head_stride;
      T* to = place(h);
      if (heads.norm) {
        norm(head, heads.norm, scales[h - start], sizes.weight_offset, head_dim, normed);
        turn(normed, to, cos, cos + half, half, head_dim, sizes.interleaved);
      } else {
        turn(head, to, cos, cos + half, half, head_dim, sizes.interleaved);
      }
      done(h, to);
    }
  }
}

template <class T>
T* slot_of(const quantise::Cache& cache, int64_t block, int64_t slot) {
  return reinterpret_cast<T*>(cache.codes) + block * cache.block_stride + slot * cache.slot_stride;
}

// Returns -1; -2 for a scale that is not positive and finite; -3 - t for a position of token t
// outside the table; or the first token with a bad slot. Nothing was written unless it is -1.
template <class T>
int64_t rope_write(const Heads<T>& query, T* out, int64_t out_token, int64_t out_head,
                   const Heads<T>& key, const Heads<T>& value, const int64_t* positions,
                   const float* cos_sin, const int64_t* slots, const quantise::Cache& keys,
                   const quantise::Cache& values, const Sizes& sizes) {
  for (int64_t t = 0; t < sizes.num_tokens; ++t) {
    if (slots[t] < -1 || slots[t] >= sizes.num_slots) return t;
    if (positions[t] < 0 || positions[t] >= sizes.max_positions) return -3 - t;
    if (slots[t] < 0 || sizes.format < 0) continue;
    const int64_t block = slots[t] / sizes.block_size, slot = slots[t] % sizes.block_size;
    if (!keys.ready(block, slot, key.count) || !values.ready(block, slot, key.count)) return -2;
  }
  const int64_t head_dim = sizes.head_dim, plain = sizes.format < 0;
  const int format = static_cast<int>(sizes.format);
  const int64_t elements = sizes.num_tokens * (query.count + 2 * key.count) * head_dim;
#pragma omp parallel for schedule(static) if (elements > kSerialElements)
  for (int64_t t = 0; t < sizes.num_tokens; ++t) {
    const float* cos = cos_sin + positions[t] * sizes.rotary_dim;
    T* out_row = out + t * out_token;
    turn_heads(query, t, cos, sizes, [&](int64_t h) { return out_row + h * out_head; },
               [](int64_t, const T*) {});
    if (slots[t] < 0) continue;
    const int64_t block = slots[t] / sizes.block_size, slot = slots[t] % sizes.block_size;
    const T* value_row = value.first + t * value.token_stride;
    if (plain) {
      T* key_slot = slot_of<T>(keys, block, slot);
      T* value_slot = slot_of<T>(values, block, slot);
      turn_heads(key, t, cos, sizes, [&](int64_t h) { return key_slot + h * head_dim; },
                 [](int64_t, const T*) {});
      const bool whole = value.head_stride == head_dim;  // the heads of a token lie side by side
      const int64_t runs = whole ? 1 : value.count, run = whole ? value.count * head_dim : head_dim;
      for (int64_t h = 0; h < runs; ++h)
        copy(value_row + h * value.head_stride, value_slot + h * head_dim, run);
    } else {
      alignas(64) T turned[kMaxHeadDim];
      turn_heads(key, t, cos, sizes, [&](int64_t) { return turned; },
                 [&](int64_t h, const T* row) {
                   keys.write(row, h, head_dim, block, slot, format);
                 });
      for (int64_t h = 0; h < value.count; ++h)
        values.write(value_row + h * value.head_stride, h, head_dim, block, slot, format);
    }
  }
  return -1;
}

}  // namespace

#define DEFINE(T, suffix)                                                                         \
  extern "C" int64_t rope_write_##suffix(                                                         \
      const Heads<T>* query, T* out, int64_t out_token, int64_t out_head, const Heads<T>* key,    \
      const Heads<T>* value, const int64_t* positions, const float* cos_sin,                      \
      const int64_t* slots, const quantise::Cache* keys, const quantise::Cache* values,           \
      const Sizes* sizes) {                                                                       \
    return rope_write<T>(*query, out, out_token, out_head, *key, *value, positions, cos_sin,      \
                         slots, *keys, *values, *sizes);                                          \
  }

DEFINE(bf16, bf16)
DEFINE(float, f32)
