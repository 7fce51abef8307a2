"""``recipes.hf`` without transformers, and without waiting for it."""

import subprocess
import sys
from pathlib import Path

import pytest

import recipes.hf

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_no_transformers() -> None:
    assert python("import sys, recipes.hf; print('transformers' in sys.modules)") == "False\n"


@pytest.mark.parametrize("name", recipes.hf.__all__)
def test_without_transformers_the_error_names_the_extra(name: str) -> None:
    out = python(
        "import sys; sys.modules['transformers'] = None\n"
        f"try: from recipes.hf import {name}\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    assert out == (
        "recipes.hf: expected the package transformers, got none; pip install -e '.[hf]'\n"
    )


def test_every_name_is_found_and_no_other() -> None:
    for name in recipes.hf.__all__:
        assert getattr(recipes.hf, name).__name__ == name
        assert name in dir(recipes.hf)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        recipes.hf.nothing  # noqa: B018
