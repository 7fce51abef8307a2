// Attention over float8 and int8 keys and values; apart from the rest, as few callers need it built.
#include "attention.h"
#include "entry.h"

template <class E>
static bool run_stored(const Args& args, int64_t stored) {
  if (stored == 3) return Attention<E, e4m3>{args}();
  return Attention<E, int8_t>{args}();
}

static bool run(const Args& args, int64_t dtype, int64_t stored) {
  if (dtype == 0) return run_stored<float>(args, stored);
  if (dtype == 1) return run_stored<bf16>(args, stored);
  return run_stored<fp16>(args, stored);
}
