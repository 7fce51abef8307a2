"""Benches that take nothing refuse what they are given."""

import ast
import re
from pathlib import Path

import pytest

from benches.no_options import no_options

BENCHES = Path(__file__).parents[2] / "benches"


def is_command(path: Path) -> bool:
    """Whether a module is one for users; parts of the figures run themselves in a process apart."""
    if path.parent.name == "figures" and path.name != "__main__.py":
        return False
    guards = (node.test for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in guards)


COMMANDS = [path for path in sorted(BENCHES.rglob("*.py")) if is_command(path)]


def test_what_is_given_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["a.py", "--rounds", "3"])
    with pytest.raises(SystemExit) as ended:
        no_options("Times things.")
    assert ended.value.code == 2
    assert "unrecognized arguments: --rounds 3" in capsys.readouterr().err


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(BENCHES)))
def test_every_command_looks_at_its_arguments(path: Path):
    assert re.search(r"ArgumentParser|no_options\(__doc__\)", path.read_text())
