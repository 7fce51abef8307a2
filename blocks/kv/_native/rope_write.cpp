// Norm and rotation of query and key and the write of key and value, one head at a time while it
// is in registers or the first cache. Rounding and order of sums are those of the separate
// operations: rms_norm, apply_rope, write_kv.

#include "quantise.h"

namespace {

using lanes::bf16;
using lanes::f32x16;
using lanes::kLanes;

constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kSerialElements = 1 << 16;  // below, a parallel region costs more than it saves

template <class T>
struct Heads {
  const T* first;
  int64_t token_stride, head_stride, count;  // strides in elements; each head is contiguous
  const T* norm;                             // weight of head_dim elements, or null
};

template <class T>
void norm(const T* x, const T* weight, T* y, int64_t size, float eps, float weight_offset) {
  f32x16 squares = {};
  lanes::for_lanes(size, [&](int64_t c, int64_t n) {
    const f32x16 value = lanes::get(x + c, n);
    squares += value * value;
  });
  const float mean = lanes::sum(squares) / static_cast<float>(size);
  const float scale = 1.0f / std::sqrt(mean + eps);
  if (weight_offset == 0.0f) {  // the Llama order: round, then multiply by the weight
    lanes::for_lanes(size, [&](int64_t c, int64_t n) {
      const f32x16 scaled = lanes::rounded(lanes::get(x + c, n) * scale, x);
      lanes::put(y + c, scaled * lanes::get(weight + c, n), n);
    });
  } else {
    lanes::for_lanes(size, [&](int64_t c, int64_t n) {
      const f32x16 factor = lanes::get(weight + c, n) + weight_offset;
      lanes::put(y + c, lanes::get(x + c, n) * scale * factor, n);
    });
  }
}

// `head` may be `out`.
template <class T>
void turn(const T* head, T* out, const float* cos, const float* sin, int64_t half,
          int64_t head_dim, int interleaved) {
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
  if (head != out) std::memcpy(out + 2 * half, head + 2 * half, (head_dim - 2 * half) * sizeof(T));
}

struct Sizes {
  int64_t num_tokens, head_dim, rotary_dim, max_positions, num_slots, block_size;
  int64_t interleaved, format;  // -1: the cache has the element type of the inputs
  float eps, weight_offset;
};

template <class T>
void write(const quantise::Cache& cache, const T* row, int64_t head, int64_t block, int64_t slot,
           const Sizes& sizes) {
  if (sizes.format >= 0) {
    cache.write(row, head, sizes.head_dim, block, slot, static_cast<int>(sizes.format));
    return;
  }
  const int64_t at = block * cache.block_stride + slot * cache.slot_stride + head * sizes.head_dim;
  std::memcpy(reinterpret_cast<T*>(cache.codes) + at, row, sizes.head_dim * sizeof(T));
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
  const int64_t half = sizes.rotary_dim / 2, head_dim = sizes.head_dim;
  const int64_t elements = sizes.num_tokens * (query.count + 2 * key.count) * head_dim;
#pragma omp parallel for schedule(static) if (elements > kSerialElements)
  for (int64_t t = 0; t < sizes.num_tokens; ++t) {
    alignas(64) T normed[kMaxHeadDim], turned[kMaxHeadDim];
    const float* cos = cos_sin + positions[t] * sizes.rotary_dim;
    const auto turn_head = [&](const Heads<T>& heads, int64_t h, T* to) {
      const T* head = heads.first + t * heads.token_stride + h * heads.head_stride;
      if (heads.norm) {
        norm(head, heads.norm, normed, head_dim, sizes.eps, sizes.weight_offset);
        head = normed;
      }
      turn(head, to, cos, cos + half, half, head_dim, static_cast<int>(sizes.interleaved));
    };
    for (int64_t h = 0; h < query.count; ++h) turn_head(query, h, out + t * out_token + h * out_head);
    if (slots[t] < 0) continue;
    const int64_t block = slots[t] / sizes.block_size, slot = slots[t] % sizes.block_size;
    for (int64_t h = 0; h < key.count; ++h) {
      turn_head(key, h, turned);
      write(keys, turned, h, block, slot, sizes);
      const T* row = value.first + t * value.token_stride + h * value.head_stride;
      write(values, row, h, block, slot, sizes);
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
