"""The example in the README runs."""

import re
from pathlib import Path

import pytest

import blocks.sched


def test_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(blocks.sched.__file__).with_name("README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("length") == 2
