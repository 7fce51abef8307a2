"""Every example of a docstring does what it says.

In processes of their own, without the type checks of a test run, as examples pass whole numbers
for floats and show what misuse is told.
"""

import doctest
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules(package: str) -> Iterator[str]:
    """Those of a package that have examples, but for kernels, which are not imported."""
    for path in sorted((ROOT / package).rglob("*.py")):
        if "_triton" not in path.parts and "    >>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", ["blocks", "recipes"])
def test_examples_do_what_they_say(package: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_doctests", package],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 100, "examples"


if __name__ == "__main__":
    wrong = tried = 0
    for name in modules(sys.argv[1]):
        found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        wrong, tried = wrong + found.failed, tried + found.attempted
    print(tried)
    sys.exit(bool(wrong))
