"""Peak resident memory of one engine on the mixed workload, alone in a process.

python -m benches.serve_memory FOLDER CACHE_BYTES  ->  {"peak": ..., "weights": ..., "cache": ...}
"""

import json
import random
import re
import sys
from pathlib import Path

from benches.serve_workload import mixed
from recipes.serve import LLM, SamplingParams


def main() -> None:
    folder, cache_bytes = sys.argv[1], int(sys.argv[2])
    llm = LLM(folder, kv_bytes=cache_bytes)
    asks = mixed(random.Random(0))
    params = [SamplingParams(temperature=0, max_tokens=a.out, ignore_eos=True) for a in asks]
    llm.generate([a.prompt for a in asks], params)
    print(json.dumps({"peak": peak(), "weights": llm.loaded.weight_bytes, "cache": cache_bytes}))


def peak() -> int:
    """Most bytes resident so far; getrusage would count what the parent held at the fork."""
    status = Path("/proc/self/status").read_text()
    (kibibytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    return int(kibibytes) * 1024


if __name__ == "__main__":
    main()
