// What one call is given, and the pieces it is cut into.
#pragma once

#include <algorithm>
#include <cstdint>

// Scales of stored keys or values, by the number of the kind: 0 none, 1 of the tensor, 2 of a head,
// 3 of a block and head, 4 of a token and head. Contiguous.
struct Scale {
  const float* data = nullptr;
  int64_t kind = 0;

  bool by_position() const { return kind >= 3; }
  float of_head(int64_t head) const {
    return kind == 1 ? data[0] : kind == 2 ? data[head] : 1.f;
  }
  // Scales of one slot, head after head.
  const float* of_slot(int64_t block, int64_t slot, int64_t block_size, int64_t heads) const {
    return data + (kind == 3 ? block : block * block_size + slot) * heads;
  }
};

// Settings few calls have; absent ones are null.
struct Extra {
  Scale k_scale, v_scale;
  const int64_t* tree;       // [num_tokens]: bit j is set where the token sees draft token j
  const int32_t* ends;       // [num_tokens]: one past where each query sits, which may be anywhere
  const int32_t* starts;     // [num_seqs]: first key to attend to
  int64_t wide;              // the output is float32
};

struct Args {
  const char *query, *key, *value;
  const int32_t *block_table, *seq_lens, *cu_q;
  const float *sinks, *slopes;
  char* out;
  float* lse;
  int64_t num_seqs, num_tokens, num_heads, num_kv_heads, head_dim;
  int64_t num_blocks, block_size, max_blocks, table_stride;
  int64_t q_token, q_head;  // strides, in elements
  int64_t k_block, k_slot, k_head, v_block, v_slot, v_head;
  int64_t causal, window, threads;
  float scale, softcap;
  Extra extra;

  bool paged() const { return block_size > 0; }
  int64_t group() const { return num_heads / num_kv_heads; }
  int64_t query_start(int64_t s) const { return cu_q ? cu_q[s] : s; }
  int64_t query_len(int64_t s) const { return cu_q ? cu_q[s + 1] - cu_q[s] : 1; }
  int64_t key_start(int64_t s) const { return paged() ? 0 : seq_lens[s]; }
  int64_t key_len(int64_t s) const {
    return paged() ? seq_lens[s] : seq_lens[s + 1] - seq_lens[s];
  }
  // Number of keys before the draft tokens of a tree.
  int64_t committed(int64_t s) const { return key_len(s) - query_len(s); }
  int64_t depth(int64_t token) const { return __builtin_popcountll(extra.tree[token]) - 1; }
  // Position of query t of sequence s; in a tree that of its depth.
  int64_t position(int64_t s, int64_t t) const {
    if (extra.ends) return extra.ends[query_start(s) + t] - 1;
    return key_len(s) - query_len(s) + (extra.tree ? depth(query_start(s) + t) : t);
  }
  // First and one past the last key that queries [t0, t1) of sequence s see.
  int64_t first_key(int64_t s, int64_t t0, int64_t t1) const {
    const int64_t start = extra.starts ? extra.starts[s] : 0;
    if (!window) return start;
    int64_t least = position(s, t0);
    if (extra.tree || extra.ends) {
      least = key_len(s) + window;  // where no query sits anywhere, none sees a key
      for (int64_t t = t0; t < t1; ++t)
        if (position(s, t) >= 0) least = std::min(least, position(s, t));
    }
    return std::max(start, least - window + 1);
  }
  int64_t end_key(int64_t s, int64_t t1) const {
    return causal ? std::max<int64_t>(0, key_len(s) - query_len(s) + t1) : key_len(s);
  }
};

struct Item {
  int32_t seq, token0, token1, head0, head1;
  int64_t first, end;    // keys to attend to
  int64_t partial = -1;  // where a single split's state goes; -1: fold and finish here
};

struct Fold {  // states of consecutive splits to be folded into one row block's result
  Item item;
  int64_t num_splits;
};

// 0, or 1 + the first sequence whose lengths, block ids or tree cannot be, before any key is read.
static int64_t first_bad_sequence(const Args& a) {
  for (int64_t s = 0; s < a.num_seqs; ++s) {
    const int64_t start = a.query_start(s), query_len = a.query_len(s), key_len = a.key_len(s);
    if ((s == 0 && start != 0) || query_len < 0 || key_len < 0) return 1 + s;
    if (start + query_len > a.num_tokens) return 1 + s;
    if (!a.paged()) {
      const int64_t key_start = a.key_start(s);
      if ((s == 0 && key_start != 0) || key_start + key_len > a.num_blocks) return 1 + s;
      continue;
    }
    if (a.cu_q && query_len > key_len && !a.extra.ends) return 1 + s;
    if (key_len > a.max_blocks * a.block_size) return 1 + s;
    if (query_len == 0) continue;
    if (a.extra.starts && a.extra.starts[s] < 0) return 1 + s;
    if (a.extra.tree)
      for (int64_t t = 0; t < query_len; ++t)  // itself and earlier ones
        if (query_len > 64 || (uint64_t)a.extra.tree[start + t] >> t != 1) return 1 + s;
    const int32_t* blocks = a.block_table + s * a.table_stride;
    const int64_t end = (key_len + a.block_size - 1) / a.block_size;
    uint32_t most = 0;
    for (int64_t b = a.first_key(s, 0, query_len) / a.block_size; b < end; ++b)
      most = std::max(most, (uint32_t)blocks[b]);
    if (end > 0 && most >= (uint64_t)a.num_blocks) return 1 + s;
  }
  if (a.num_seqs == 0 && a.num_tokens > 0) return 1;
  const bool keys_end = a.paged() || a.seq_lens[a.num_seqs] == a.num_blocks;
  const int64_t tokens = a.cu_q ? a.cu_q[a.num_seqs] : a.num_seqs;
  return keys_end && tokens == a.num_tokens ? 0 : 1 + a.num_seqs;
}
