// Scatter of new keys and values into their slots: two memcpy a token, or quantised on the way.

#include "quantise.h"

namespace {

using lanes::bf16;

constexpr int64_t kParallelBytes = 1 << 18;  // below this, waking threads costs more than it saves

// The first token whose slot is out of range, or -1.
int64_t outside(const int64_t* slots, int64_t num_tokens, int64_t num_slots) {
  for (int64_t token = 0; token < num_tokens; ++token) {
    if (slots[token] < -1 || slots[token] >= num_slots) return token;
  }
  return -1;
}

// Returns -1, the first token with a bad slot, or -2 for a scale that is not positive and finite;
// in both cases nothing was written.
template <class T>
int64_t write_quantised(const T* key, int64_t key_stride, const T* value, int64_t value_stride,
                        const quantise::Cache& keys, const quantise::Cache& values,
                        const int64_t* slots, int64_t num_tokens, int64_t num_slots,
                        int64_t block_size, int64_t num_heads, int64_t head_dim, int format) {
  const int64_t bad = outside(slots, num_tokens, num_slots);
  if (bad >= 0) return bad;
  for (int64_t token = 0; token < num_tokens; ++token) {
    const int64_t block = slots[token] / block_size, slot = slots[token] % block_size;
    if (slots[token] < 0) continue;
    if (!keys.ready(block, slot, num_heads) || !values.ready(block, slot, num_heads)) return -2;
  }
#pragma omp parallel for if (num_tokens * num_heads * head_dim > kParallelBytes)
  for (int64_t token = 0; token < num_tokens; ++token) {
    if (slots[token] < 0) continue;
    const int64_t block = slots[token] / block_size, slot = slots[token] % block_size;
    for (int64_t head = 0; head < num_heads; ++head) {
      keys.write(key + token * key_stride + head * head_dim, head, head_dim, block, slot, format);
      values.write(value + token * value_stride + head * head_dim, head, head_dim, block, slot,
                   format);
    }
  }
  return -1;
}

}  // namespace

// Rows of `row_bytes` go from key and value (token strides in bytes) to the caches (block and slot
// strides in bytes). Slot -1 is skipped. Returns -1, or the first token whose slot is out of range;
// then nothing was written.
extern "C" int64_t write_kv(const char* key, int64_t key_stride, const char* value,
                            int64_t value_stride, char* key_cache, char* value_cache,
                            int64_t block_stride, int64_t slot_stride, const int64_t* slots,
                            int64_t num_tokens, int64_t num_slots, int64_t block_size,
                            int64_t row_bytes) {
  const int64_t bad = outside(slots, num_tokens, num_slots);
  if (bad >= 0) return bad;
#pragma omp parallel for if (num_tokens * row_bytes > kParallelBytes)
  for (int64_t token = 0; token < num_tokens; ++token) {
    const int64_t slot = slots[token];
    if (slot < 0) continue;
    const int64_t at = slot / block_size * block_stride + slot % block_size * slot_stride;
    std::memcpy(key_cache + at, key + token * key_stride, row_bytes);
    std::memcpy(value_cache + at, value + token * value_stride, row_bytes);
  }
  return -1;
}

#define DEFINE(T, suffix)                                                                          \
  extern "C" int64_t write_quantised_##suffix(                                                     \
      const T* key, int64_t key_stride, const T* value, int64_t value_stride,                      \
      const quantise::Cache* keys, const quantise::Cache* values, const int64_t* slots,            \
      int64_t num_tokens, int64_t num_slots, int64_t block_size, int64_t num_heads,                \
      int64_t head_dim, int format) {                                                              \
    return write_quantised<T>(key, key_stride, value, value_stride, *keys, *values, slots,         \
                              num_tokens, num_slots, block_size, num_heads, head_dim, format);     \
  }

DEFINE(bf16, bf16)
DEFINE(float, f32)
