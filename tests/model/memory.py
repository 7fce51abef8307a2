"""How far the resident memory of a fresh process rises while it reads a folder."""

import subprocess
import sys

SCRIPT = """
import re, sys
from pathlib import Path
import torch
from recipes.model import load_model

def peak():  # getrusage would count what the parent had resident when it forked
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
model = load_model(sys.argv[1])
print(peak() - before)
"""


def peak_growth_of_loading(folder: object) -> int:
    """Bytes by which the peak of a process rose in ``load_model(folder)``."""
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
