"""Peak resident memory of one engine on the mixed workload, alone in a process.

python -m benches.serve_memory FOLDER CACHE_BYTES  ->  {"peak": ..., "weights": ..., "cache": ...}
"""

import argparse
import json
import random
import re
from pathlib import Path

from benches.serve_workload import mixed
from recipes.serve import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser("python -m benches.serve_memory", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a model")
    parser.add_argument("cache_bytes", type=int)
    options = parser.parse_args()
    try:
        llm = LLM(options.folder, kv_bytes=options.cache_bytes)
    except (ValueError, MemoryError) as error:
        parser.error(str(error))
    asks = mixed(random.Random(0))
    params = [SamplingParams(temperature=0, max_tokens=a.out, ignore_eos=True) for a in asks]
    llm.generate([a.prompt for a in asks], params)
    print(
        json.dumps(
            {"peak": peak(), "weights": llm.loaded.weight_bytes, "cache": options.cache_bytes}
        )
    )


def peak() -> int:
    """Most bytes resident so far; getrusage would count what the parent held at the fork."""
    status = Path("/proc/self/status").read_text()
    (kibibytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    return int(kibibytes) * 1024


if __name__ == "__main__":
    main()
