// Attention on the CPU over packed or paged keys, with online softmax.
//
// Work is cut into items: some queries of one sequence, some key heads, some splits of the context.
// Splits lie at fixed positions (every kSplit) and are always folded in order, so a row's bits
// depend on its own sequence alone: not on its batch, on threads, on how the context was cut into
// calls, nor on whether an item folded its splits itself or left them to be folded.
//
// Inside an item, per tile of 64 keys and key head: pack keys and values (pages disappear here),
// then for up to 6 rows (queries x heads of the group) at a time: scores, softmax step, weighted
// values. The next tile is prefetched meanwhile, all its heads in memory order.

#pragma once

#include <omp.h>

#include <cstdlib>
#include <vector>

#include "args.h"
#include "state.h"

constexpr int kSplit = 512;      // positions of a split; a multiple of kTile
constexpr int kBlockRows = 96;   // most rows (queries x group) of an item, if a query's rows fit
constexpr int kStreamRows = 16;  // up to here reading memory is the work
constexpr float kLog2e = 1.4426950408889634f;

// Queries and products are of E, stored keys and values of C: E itself, or quantised.
template <class E, class C>
struct Attention {
  static constexpr bool PAIRS = kPairs<E>;
  static constexpr bool QUANTISED = sizeof(C) == 1;
  const Args& a;
  const int64_t group, width, words;
  const float score_scale;

  explicit Attention(const Args& args)
      : a(args),
        group(args.group()),
        width(round_up((int)args.head_dim, 2 * kLanes)),
        words(round_up((int)args.head_dim, kLanes * kPerWord<E>) / kPerWord<E>),
        score_scale(args.softcap > 0 ? args.scale / args.softcap : args.scale * kLog2e) {}

  // Addresses of keys and values of one tile, without the head's offset.
  struct Tile {
    int64_t position = -1;
    int first, last;  // keys of the tile to be read, half-open
    const char *keys[kTile] = {}, *values[kTile] = {};
    const float *key_scales[kTile], *value_scales[kTile];  // of head 0, where positions have scales
    int drafts = kTile;  // the first key that is a node of a tree
  };

  void locate(Tile& tile, const Item& item, int64_t position) const {
    tile.position = position;
    tile.first = (int)std::max<int64_t>(0, item.first - position);
    tile.last = (int)std::min<int64_t>(kTile, item.end - position);
    if (a.extra.tree)
      tile.drafts = (int)std::max<int64_t>(0, std::min<int64_t>(kTile, a.committed(item.seq) - position));
    if (!a.paged()) {
      const int64_t row = a.key_start(item.seq) + position;
      for (int i = tile.first; i < tile.last; ++i) {
        tile.keys[i] = a.key + (row + i) * a.k_slot * sizeof(C);
        tile.values[i] = a.value + (row + i) * a.v_slot * sizeof(C);
      }
      return;
    }
    const int32_t* blocks = a.block_table + item.seq * a.table_stride;
    int64_t index = (position + tile.first) / a.block_size;
    int64_t slot = (position + tile.first) % a.block_size;
    for (int i = tile.first; i < tile.last; ++index, slot = 0) {
      const int64_t block = blocks[index];
      if constexpr (QUANTISED) locate_scales(tile, i, block, slot);
      const char* key = a.key + (block * a.k_block + slot * a.k_slot) * sizeof(C);
      const char* value = a.value + (block * a.v_block + slot * a.v_slot) * sizeof(C);
      for (; slot < a.block_size && i < tile.last; ++slot, ++i) {
        tile.keys[i] = key;
        tile.values[i] = value;
        key += a.k_slot * sizeof(C);
        value += a.v_slot * sizeof(C);
      }
    }
  }

  // Where the scales of keys from key i of the tile to the end of its block are.
  void locate_scales(Tile& tile, int i, int64_t block, int64_t slot) const {
    const Scale &k = a.extra.k_scale, &v = a.extra.v_scale;
    if (!k.by_position() && !v.by_position()) return;
    for (; slot < a.block_size && i < tile.last; ++slot, ++i) {
      if (k.by_position()) tile.key_scales[i] = k.of_slot(block, slot, a.block_size, a.num_kv_heads);
      if (v.by_position()) tile.value_scales[i] = v.of_slot(block, slot, a.block_size, a.num_kv_heads);
    }
  }

  // Scales of one tile and key head: of the head, and of positions or null.
  struct Scaling {
    float key;
    const float *keys, *values;
  };

  Scaling scaling_of(const Tile& tile, int head, float* keys, float* values) const {
    Scaling out{score_scale, nullptr, nullptr};
    if constexpr (QUANTISED) {
      const Scale &k = a.extra.k_scale, &v = a.extra.v_scale;
      out.key *= k.of_head(head);
      const auto gather = [&](const float* const* from, float* to) {
        for (int i = 0; i < kTile; ++i)
          to[i] = i >= tile.first && i < tile.last ? from[i][head] : 0.f;
        return to;
      };
      if (k.by_position()) out.keys = gather(tile.key_scales, keys);
      if (v.by_position()) out.values = gather(tile.value_scales, values);
    }
    return out;
  }

  // What to prefetch of the next tile while key head h of this one is computed: a share of its rows,
  // all heads of the item, in memory order.
  Ahead ahead_of(const Tile& next, const char* const* rows, const Item& item, int h,
                 int64_t head_stride) const {
    const int heads = item.head1 - item.head0;
    if (head_stride != a.head_dim || next.first >= next.last) return {};
    const int64_t start = item.head0 * a.head_dim * (int64_t)sizeof(C);
    const int64_t bytes = heads * a.head_dim * (int64_t)sizeof(C);
    const int first = std::max(next.first, kTile * h / heads);
    const int last = std::min(next.last, kTile * (h + 1) / heads);
    return {rows + first, rows + std::max(first, last), start, start, start + bytes};
  }

  struct Row {
    int first, last;  // keys of the tile this row sees, half-open
    float slope;
    int64_t position;
    uint64_t tree;  // the draft tokens this row sees
  };

  Row row_of(const Item& item, const Tile& tile, int64_t r, int head) const {
    const int64_t token = item.token0 + r / group;
    const int64_t position = a.position(item.seq, token);
    Row row;
    row.position = position;
    row.tree = a.extra.tree ? (uint64_t)a.extra.tree[a.query_start(item.seq) + token] : 0;
    const int64_t last = a.causal || a.extra.ends ? position + 1 : a.key_len(item.seq);
    const int64_t first = a.window ? position - a.window + 1 : 0;
    row.first = (int)std::max<int64_t>(tile.first, std::min<int64_t>(kTile, first - tile.position));
    row.last = (int)std::min<int64_t>(tile.last, std::max<int64_t>(-1, last - tile.position));
    row.slope = a.slopes ? a.slopes[head * group + r % group] * kLog2e : 0.f;
    return row;
  }

  // Products become scores in base 2; -inf where the row sees nothing.
  void adjust(V* x, const Row& row, const Item& item, const Tile& tile, const Scaling& by) const {
    constexpr int n = kTile / kLanes;
    for (int j = 0; j < n; ++j) x[j] *= by.key;
    if (by.keys)
      for (int j = 0; j < n; ++j) x[j] *= vload(by.keys + j * kLanes);
    if (a.softcap > 0)
      for (int j = 0; j < n; ++j) x[j] = vtanh(x[j]) * (a.softcap * kLog2e);
    if (row.slope != 0.f) {
      alignas(64) float distance[kTile];
      for (int j = 0; j < n; ++j)
        vstore(distance + j * kLanes,
               (float)(row.position - tile.position - j * kLanes) - vlanes());
      for (int i = tile.drafts; i < tile.last; ++i)
        distance[i] = (float)(row.position - draft_position(item, tile, i));
      for (int j = 0; j < n; ++j) x[j] -= vabs(vload(distance + j * kLanes)) * row.slope;
    }
    if (row.first > 0 || row.last < kTile)
      for (int j = 0; j < n; ++j)
        x[j] = vkeep(x[j], row.first - j * kLanes, row.last - j * kLanes);
    for (int i = std::max(row.first, tile.drafts); i < row.last; ++i) {
      const int64_t node = tile.position + i - a.committed(item.seq);
      const bool seen = row.tree >> node & 1;
      if (!seen || (a.window && row.position - draft_position(item, tile, i) >= a.window))
        x[i / kLanes][i % kLanes] = -INFINITY;
    }
  }

  // The position of key i of a tile, which is a node of a tree: that of its depth.
  int64_t draft_position(const Item& item, const Tile& tile, int i) const {
    const int64_t committed = a.committed(item.seq);
    const int64_t token = a.query_start(item.seq) + tile.position + i - committed;
    return committed + a.depth(token);
  }

  // One tile and one key head, for all rows of the item.
  void step(const Item& item, const Tile& tile, int head, const float* q, const float* keys,
            const float* values, State state, V* sums, Ahead& next_keys,
            Ahead& next_values) const {
    const int64_t rows = (item.token1 - item.token0) * group;
    const int key_cols = round_up(tile.last, kLanes) / kLanes;
    const int value_steps = round_up(tile.last, kPerWord<E>) / kPerWord<E>;
    alignas(64) float scores[kRows][kTile];
    alignas(64) float weights[kRows][kTile];
    alignas(64) float key_scales[kTile], value_scales[kTile];
    const Scaling by = scaling_of(tile, head, key_scales, value_scales);
    for (int64_t r0 = 0; r0 < rows; r0 += kRows) {
      const int n = (int)std::min<int64_t>(kRows, rows - r0);
      Row seen[kRows];
      bool any = false;
      for (int r = 0; r < n; ++r) {
        seen[r] = row_of(item, tile, r0 + r, head);
        any |= seen[r].first < seen[r].last;
      }
      if (!any) continue;
      product_of<PAIRS>(n, key_cols)(q + r0 * words, words, keys, kTile, (int)words, scores[0],
                                     kTile, false, next_keys);
      for (int r = 0; r < n; ++r) {
        V x[kTile / kLanes];
        for (int j = 0; j < kTile / kLanes; ++j)
          x[j] = j < key_cols ? vload(scores[r] + j * kLanes) : V{};
        adjust(x, seen[r], item, tile, by);
        const float before = state.m[r0 + r];
        const float m = std::max(before, vreduce_max(vmax(vmax(x[0], x[1]), vmax(x[2], x[3]))));
        const float base = m == -INFINITY ? 0.f : m;
        for (int j = 0; j < kTile / kLanes; ++j) x[j] = vexp2(x[j] - base);
        if (by.values) {
          V scaled[kTile / kLanes];
          for (int j = 0; j < kTile / kLanes; ++j) scaled[j] = x[j] * vload(by.values + j * kLanes);
          pack_weights<PAIRS>(scaled, weights[r]);
        } else {
          pack_weights<PAIRS>(x, weights[r]);
        }
        V& sum = sums[r0 + r];
        if (m != before) {
          const V shrink = vexp2(vset(before - base));
          sum *= shrink;
          float* o = state.o + (r0 + r) * width;
          for (int64_t d = 0; d < width; d += kLanes) vstore(o + d, vload(o + d) * shrink);
        }
        sum += (x[0] + x[1]) + (x[2] + x[3]);
        state.m[r0 + r] = m;
      }
      const int cols = round_up((int)a.head_dim, kLanes * kPerWord<E>) / kLanes;
      for (int c = 0; c < cols; c += kCols)
        product_of<PAIRS>(n, std::min(kCols, cols - c))(weights[0], kTile, values + c * kLanes,
                                                        width, value_steps,
                                                        state.o + r0 * width + c * kLanes, width,
                                                        true, next_values);
    }
  }

  void finish(const Item& item, int head, State s) const {
    const int64_t rows = (item.token1 - item.token0) * group;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = a.query_start(item.seq) + item.token0 + r / group;
      const int64_t h = head * group + r % group;
      float m = s.m[r], l = s.l[r], shrink = 1.f;
      if (a.sinks) {
        const float sink = a.sinks[h] * kLog2e;
        const float most = std::max(m, sink), base = most == -INFINITY ? 0.f : most;
        shrink = exp2_of(m - base);
        l = std::fma(l, shrink, exp2_of(sink - base));
        m = most;
      }
      if (a.lse) a.lse[token * a.num_heads + h] = l == 0.f ? -INFINITY : m / kLog2e + std::log(l);
      const bool seen = s.l[r] != 0.f;
      float by = seen ? shrink / l : 0.f;
      if constexpr (QUANTISED) by *= a.extra.v_scale.of_head(head);
      const int64_t start = (token * a.num_heads + h) * a.head_dim;
      for (int64_t d = 0; d < a.head_dim; d += kLanes) {
        const V o = seen ? in_order<E>(s.o + r * width, (int)d / kLanes) * by : V{};
        const int count = (int)(a.head_dim - d);
        if (a.extra.wide) store_elements((float*)a.out + start + d, o, count);
        else store_elements((E*)a.out + start + d, o, count);
      }
    }
  }

  size_t item_floats(const Item& item) const {
    const int64_t rows = (item.token1 - item.token0) * group, heads = item.head1 - item.head0;
    return words * kTile + kTile * width + rows * heads * (words + kLanes) +
           2 * heads * state_floats(rows, width);
  }

  void run(const Item& item, float* keys, float* partials) const {
    const int64_t rows = (item.token1 - item.token0) * group, heads = item.head1 - item.head0;
    const size_t state_size = state_floats(rows, width);
    float* values = keys + words * kTile;
    float* q = values + kTile * width;
    V* sums = (V*)(q + rows * heads * words);
    float* now = (float*)(sums + rows * heads);
    float* total = now + heads * state_size;
    for (int h = 0; h < heads; ++h) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = a.query_start(item.seq) + item.token0 + r / group;
        const int64_t head = (item.head0 + h) * group + r % group;
        const E* from = (const E*)a.query + token * a.q_token + head * a.q_head;
        pack_row(from, (int)a.head_dim, q + (h * rows + r) * words);
      }
      clear(state_at(total + h * state_size, rows), rows);
    }
    Tile tiles[2];
    int current = 0;
    int64_t position = item.first / kTile * kTile;
    if (position < item.end) locate(tiles[0], item, position);
    while (position < item.end) {
      const int64_t split_end = std::min(item.end, (position / kSplit + 1) * kSplit);
      for (int h = 0; h < heads; ++h) {
        const State s = state_at(now + h * state_size, rows);
        clear(s, rows);
        std::fill(s.o, s.o + rows * width, 0.f);
      }
      std::fill(sums, sums + rows * heads, V{});
      for (; position < split_end; position += kTile, current ^= 1) {
        const Tile& tile = tiles[current];
        Tile& next = tiles[current ^ 1];
        locate(next, item, position + kTile);  // empty past the end
        for (int h = 0; h < heads; ++h) {
          const int head = item.head0 + h;
          Ahead next_keys = ahead_of(next, next.keys, item, h, a.k_head);
          Ahead next_values = ahead_of(next, next.values, item, h, a.v_head);
          pack_keys<E, C>(tile.keys, head * a.k_head * sizeof(C), tile.first, tile.last,
                       (int)a.head_dim, keys, next_keys);
          pack_values<E, C>(tile.values, head * a.v_head * sizeof(C), tile.first, tile.last,
                         (int)a.head_dim, values, (int)width, next_values);
          step(item, tile, head, q + h * rows * words, keys, values,
               state_at(now + h * state_size, rows), sums + h * rows, next_keys, next_values);
        }
      }
      for (int h = 0; h < heads; ++h) {
        const State s = state_at(now + h * state_size, rows);
        for (int64_t r = 0; r < rows; ++r) s.l[r] = vreduce_add(sums[h * rows + r]);
        fold(state_at(total + h * state_size, rows), s, rows, width);
      }
    }
    for (int h = 0; h < heads; ++h) {
      float* from = total + h * state_size;
      if (item.partial < 0) finish(item, item.head0 + h, state_at(from, rows));
      else std::memcpy(partials + item.partial + h * state_size, from, state_size * sizeof(float));
    }
  }

  void run_fold(const Fold& job, float* partials) const {
    const Item& item = job.item;
    const int64_t rows = (item.token1 - item.token0) * group, heads = item.head1 - item.head0;
    const size_t state_size = state_floats(rows, width);
    for (int h = 0; h < heads; ++h) {
      float* first = partials + item.partial + h * state_size;
      for (int64_t i = 1; i < job.num_splits; ++i)
        fold(state_at(first, rows), state_at(first + i * heads * state_size, rows), rows, width);
      finish(item, item.head0 + h, state_at(first, rows));
    }
  }

  // Cut the call into items. Where too few would be left for the threads, key heads and then
  // splits become items of their own; only the time changes by it.
  size_t plan(std::vector<Item>& items, std::vector<Fold>& folds) const {
    const int64_t block_tokens = std::max<int64_t>(1, kBlockRows / group);
    int64_t total = 0;
    for (int64_t s = 0; s < a.num_seqs; ++s) total += a.query_len(s) ? a.key_len(s) : 0;
    size_t partial = 0;
    for (int64_t s = 0; s < a.num_seqs; ++s) {
      const int64_t n = a.query_len(s);
      if (n == 0) continue;
      const bool stream = n * group <= kStreamRows;
      const int64_t blocks = (n + block_tokens - 1) / block_tokens;
      const bool large = a.key_len(s) * 8 * a.threads > total;  // a large share of the work
      const bool split = large && (stream || blocks * a.num_kv_heads < 4 * a.threads);
      const bool few = large && total < 4 * a.threads * kSplit;
      const int64_t heads = !stream ? 1 : few ? std::max<int64_t>(1, a.num_kv_heads / a.threads)
                                              : a.num_kv_heads;
      for (int64_t head = 0; head < a.num_kv_heads; head += heads)
        for (int64_t b = blocks - 1; b >= 0; --b) {
          Item item;
          item.seq = (int32_t)s;
          item.token0 = (int32_t)(b * block_tokens);
          item.token1 = (int32_t)std::min(n, (b + 1) * block_tokens);
          item.head0 = (int32_t)head;
          item.head1 = (int32_t)std::min(a.num_kv_heads, head + heads);
          item.first = a.first_key(s, item.token0, item.token1);
          item.end = a.end_key(s, item.token1);
          const int64_t split0 = item.first / kSplit, split1 = (item.end + kSplit - 1) / kSplit;
          if (!split || split1 - split0 < 2) {
            items.push_back(item);
            continue;
          }
          const int64_t first = item.first, end = item.end;
          item.partial = (int64_t)partial;
          folds.push_back({item, split1 - split0});
          const int64_t rows = (item.token1 - item.token0) * group;
          for (int64_t i = split0; i < split1; ++i) {
            item.first = std::max(first, i * kSplit);
            item.end = std::min(end, (i + 1) * kSplit);
            item.partial = (int64_t)partial;
            partial += (item.head1 - item.head0) * state_floats(rows, width);
            items.push_back(item);
          }
        }
    }
    return partial;
  }

  // False where memory ran out.
  bool operator()() const {
    static thread_local std::vector<Item> items;
    static thread_local std::vector<Fold> folds;
    static thread_local Scratch partial_memory;
    items.clear();
    folds.clear();
    const size_t partial_floats = plan(items, folds);
    float* partials = partial_memory.get(partial_floats);
    if (partial_floats && !partials) return false;
    const Item* item = items.data();
    const Fold* job = folds.data();
    const int64_t num_items = (int64_t)items.size(), num_folds = (int64_t)folds.size();
    const int threads = (int)std::max<int64_t>(1, std::min(a.threads, num_items));
    bool short_of_memory = false;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(|| : short_of_memory)
    {
      static thread_local Scratch scratch;
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < num_items; ++i) {
        if (float* memory = scratch.get(item_floats(item[i]))) run(item[i], memory, partials);
        else short_of_memory = true;
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < num_folds; ++i)
        if (!short_of_memory) run_fold(job[i], partials);
    }
    return !short_of_memory;
  }
};
