// Softmax states of rows over parts of their keys, and how two are folded into one.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "tile.h"

// Memory that grows and stays; one per thread. Null where there is none left.
struct Scratch {
  float* data = nullptr;
  size_t size = 0;
  float* get(size_t floats) {
    if (floats > size) {
      std::free(data);
      size = (floats + 1023) / 1024 * 1024;
      data = (float*)std::aligned_alloc(64, size * sizeof(float));
      if (!data) size = 0;
    }
    return data;
  }
  ~Scratch() { std::free(data); }
};

// Softmax state of some rows: running maximum (log 2), denominator, weighted values.
struct State {
  float *m, *l, *o;
};

// A row saw no key exactly when its denominator is 0: its maximum is -inf where all scores are NaN,
// too, and those must reach the output.

static inline size_t state_floats(int64_t rows, int64_t width) {
  return rows * width + 2 * round_up((int)rows, 16);
}

static inline State state_at(float* p, int64_t rows) {
  const int64_t padded = round_up((int)rows, 16);
  return {p, p + padded, p + 2 * padded};
}

static inline void clear(State s, int64_t rows) {
  std::fill(s.m, s.m + rows, -INFINITY);
  std::fill(s.l, s.l + rows, 0.f);
}

static inline float exp2_of(float x) { return vexp2(vset(x))[0]; }

// Fold state b into a. The order of folding is part of the result.
static inline void fold(State a, State b, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    if (b.l[r] == 0.f) continue;
    float *to = a.o + r * width, *from = b.o + r * width;
    if (a.l[r] == 0.f) {
      a.m[r] = b.m[r];
      a.l[r] = b.l[r];
      std::memcpy(to, from, width * sizeof(float));
      continue;
    }
    const float m = std::max(a.m[r], b.m[r]);
    const float scale_a = exp2_of(a.m[r] - m), scale_b = exp2_of(b.m[r] - m);
    a.m[r] = m;
    a.l[r] = std::fma(b.l[r], scale_b, a.l[r] * scale_a);
    for (int64_t d = 0; d < width; d += kLanes)
      vstore(to + d, vfma(vload(from + d), vset(scale_b), vload(to + d) * scale_a));
  }
}
