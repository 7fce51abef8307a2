// The C interface, for a source that defines `run`: false where memory ran out.
#pragma once

#include <new>

#include "args.h"

static bool run(const Args& args, int64_t dtype, int64_t stored);

// Attention of packed queries. Keys lie in blocks and seq_lens holds lengths; or, with block_size 0,
// keys are packed, seq_lens holds their running sums and num_blocks their number.
// cu_q null: one query a sequence. dtype of queries: 0 float32, 1 bfloat16, 2 float16; of the cache
// (stored) also 3 float8 e4m3, 4 int8. window 0, softcap 0, extra null: none. Strides count elements.
// Returns 0, 1 + the first sequence that was refused, or -1 where memory ran out.
extern "C" int64_t blocks_attention(
    const void* query, const void* key, const void* value, const int32_t* block_table,
    const int32_t* seq_lens, const int32_t* cu_q, const float* sinks, const float* slopes,
    void* out, float* lse, const Extra* extra, int64_t num_seqs, int64_t num_tokens,
    int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t num_blocks,
    int64_t block_size, int64_t max_blocks, int64_t table_stride, int64_t q_token, int64_t q_head,
    int64_t k_block, int64_t k_slot, int64_t k_head, int64_t v_block, int64_t v_slot,
    int64_t v_head, int64_t dtype, int64_t stored, int64_t causal, int64_t window, int64_t threads,
    double scale, double softcap) {
  const Args args{(const char*)query, (const char*)key, (const char*)value, block_table, seq_lens,
                  cu_q, sinks, slopes, (char*)out, lse, num_seqs, num_tokens, num_heads,
                  num_kv_heads, head_dim, num_blocks, block_size, max_blocks, table_stride,
                  q_token, q_head, k_block, k_slot, k_head, v_block, v_slot, v_head, causal,
                  window, threads, (float)scale, (float)softcap, extra ? *extra : Extra{}};
  try {
    if (const int64_t bad = first_bad_sequence(args)) return bad;
    return run(args, dtype, stored) ? 0 : -1;
  } catch (const std::bad_alloc&) {
    return -1;
  }
}
