// Attention over a union of key sets from attention over each: merge_states on the CPU.
//
// A row is folded by one thread in the order of its states, so its bits depend on it alone. A state
// with an LSE of -inf saw no key and is not read; a NaN reaches the output.

#include <omp.h>

#include "vec.h"

namespace {

template <class I, class O>
void merge(const I* outputs, const float* lses, O* out, float* lse, int64_t num_states,
           int64_t num_rows, int64_t head_dim, int64_t threads) {
#pragma omp parallel for num_threads((int)threads) if (threads > 1)
  for (int64_t row = 0; row < num_rows; ++row) {
    float most = -INFINITY, total = 0.f;
    for (int64_t i = 0; i < num_states; ++i) {
      const float x = lses[i * num_rows + row];
      if (x > most) most = x;
      if (x != x) total = x;
    }
    const float base = most == -INFINITY ? 0.f : most;
    for (int64_t i = 0; i < num_states; ++i) total += std::exp(lses[i * num_rows + row] - base);
    const float by = total == 0.f ? 0.f : 1.f / total;
    lse[row] = total == 0.f ? -INFINITY : base + std::log(total);
    float sums[64];
    for (int64_t d0 = 0; d0 < head_dim; d0 += 64) {
      const int64_t n = head_dim - d0 < 64 ? head_dim - d0 : 64;
      for (int64_t d = 0; d < n; ++d) sums[d] = total != total ? total : 0.f;
      for (int64_t i = 0; i < num_states; ++i) {
        const float x = lses[i * num_rows + row];
        if (x == -INFINITY) continue;
        const float weight = std::exp(x - base) * by;
        const I* from = outputs + (i * num_rows + row) * head_dim + d0;
        for (int64_t d = 0; d < n; ++d) sums[d] += weight * to_float(from[d]);
      }
      for (int64_t d = 0; d < n; ++d) from_float(sums[d], out + row * head_dim + d0 + d);
    }
  }
}

}  // namespace

// outputs [num_states, num_rows, head_dim] of type `from`, lses [num_states, num_rows]; out
// [num_rows, head_dim] of type `to`, lse [num_rows]. Types: 0 float32, 1 bfloat16, 2 float16;
// `from` is float32 or `to`.
extern "C" void blocks_merge(const void* outputs, const float* lses, void* out, float* lse,
                             int64_t num_states, int64_t num_rows, int64_t head_dim, int64_t from,
                             int64_t to, int64_t threads) {
#define MERGE(I, O) \
  merge((const I*)outputs, lses, (O*)out, lse, num_states, num_rows, head_dim, threads)
  if (to == 0) MERGE(float, float);
  else if (to == 1 && from == 0) MERGE(float, bf16);
  else if (to == 1) MERGE(bf16, bf16);
  else if (from == 0) MERGE(float, fp16);
  else MERGE(fp16, fp16);
#undef MERGE
}
