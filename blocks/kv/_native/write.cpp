// Scatter of new keys and values into their slots: two memcpy a token, nothing else.

#include <cstdint>
#include <cstring>

namespace {
constexpr int64_t kParallelBytes = 1 << 18;  // below this, waking threads costs more than it saves
}

// Rows of `row_bytes` go from key and value (token strides in bytes) to the caches (block and slot
// strides in bytes). Slot -1 is skipped. Returns -1, or the first token whose slot is out of range;
// then nothing was written.
extern "C" int64_t write_kv(const char* key, int64_t key_stride, const char* value,
                            int64_t value_stride, char* key_cache, char* value_cache,
                            int64_t block_stride, int64_t slot_stride, const int64_t* slots,
                            int64_t num_tokens, int64_t num_slots, int64_t block_size,
                            int64_t row_bytes) {
  for (int64_t token = 0; token < num_tokens; ++token) {
    if (slots[token] < -1 || slots[token] >= num_slots) return token;
  }
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
