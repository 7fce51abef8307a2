"""How far the resident memory of a fresh process rises while it reads a folder."""

import subprocess
import sys

SCRIPT = """
import resource, sys
from recipes.model import load_model
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = load_model(sys.argv[1])
print(peak() - before)
"""


def peak_growth_of_loading(folder: object) -> int:
    """Bytes by which the peak of a process rose in ``load_model(folder)``."""
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
