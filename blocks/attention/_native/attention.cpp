// Attention over keys and values of the query's own type.
#include "attention.h"
#include "entry.h"

static bool run(const Args& args, int64_t dtype, int64_t) {
  if (dtype == 0) return Attention<float, float>{args}();
  if (dtype == 1) return Attention<bf16, bf16>{args}();
  return Attention<fp16, fp16>{args}();
}
