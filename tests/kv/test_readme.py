"""The examples of the README and of the docstrings run and say what they claim."""

import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "blocks" / "kv" / "README.md"


def test_the_example_runs():
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.group(1), names)
    assert printed.getvalue().startswith("496 tokens fit: 31 blocks x 16 tokens")
    manager = names["manager"]
    assert manager.num_hit_tokens == 32
    assert manager.table(2).num_tokens == 41
    assert manager.table(2).block_ids[:2] == manager.table(0).block_ids[:2]
    manager.check_invariants()


@pytest.mark.parametrize("module", ["block_manager", "block_pool", "cache", "copies"])
def test_docstring_examples_run(module):
    failed, attempted = doctest.testmod(importlib.import_module(f"blocks.kv.{module}"))
    assert attempted > 0
    assert failed == 0
