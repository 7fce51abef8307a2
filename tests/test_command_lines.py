"""Every command line says what can be set, to what it is set, and what it misses."""

import dataclasses
import importlib

import pytest

from recipes.place.config import Traffic
from recipes.plan.config import PlanConfig
from recipes.plan.inference.config import InferenceConfig
from recipes.serve.config import EngineConfig
from recipes.settings import described
from recipes.train.config import TrainConfig

COMMANDS = {
    "demo": ("",),
    "hf": ("",),
    "model": ("",),
    "place": ("", "plan", "simulate", "serve", "profile"),
    "plan": ("", "explain", "diff", "pin", "whatif", "show", "run", "calibrate", "inference"),
    "serve": ("",),
    "train": ("", "plan", "simulate", "replay", "compare", "export"),
}
SETTINGS = {
    "plan": PlanConfig,
    "plan inference": InferenceConfig,
    "serve": EngineConfig,
    "train": TrainConfig,
}


def said(command: str, monkeypatch, capsys, *arguments: str) -> tuple[object, str]:
    """How a command ends, and what it says."""
    recipe, _, verb = command.partition(" ")
    given = [*filter(None, [verb]), *arguments]
    monkeypatch.setattr("sys.argv", [recipe, *given])
    module = importlib.import_module(
        f"recipes.{recipe}.__main__" if recipe != "demo" else "recipes.demo"
    )
    try:
        code = module.main()
    except SystemExit as ended:
        code = ended.code
    told = capsys.readouterr()
    return code, told.out + told.err


@pytest.mark.parametrize(
    "command", [f"{recipe} {verb}".strip() for recipe, verbs in COMMANDS.items() for verb in verbs]
)
def test_help_says_what_a_command_does_and_what_can_be_set(command, monkeypatch, capsys):
    code, text = said(command, monkeypatch, capsys, "--help")
    assert code == 0
    assert "``" not in text, "marks of docstrings, which a terminal shows as they are"
    said_of_itself = [line for line in text.splitlines() if line and line[0].isupper()]
    assert said_of_itself, text
    for field in dataclasses.fields(SETTINGS[command]) if command in SETTINGS else ():
        assert field.name in text, field.name


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("plan", "model"),
        ("plan inference", "model"),
        ("place plan", "config"),
        ("place profile", "folder"),
    ],
)
def test_only_what_is_missing_is_called_required(command, missing, monkeypatch, capsys):
    code, text = said(command, monkeypatch, capsys)
    assert code == 2
    assert text.strip().rpartition("required: ")[2] == missing


def test_values_are_told_as_they_are_written():
    told = described(Traffic)
    assert told.startswith("settings:\n\ntotal_rate: requests a second")
    assert " trace=none " in told.replace("\n", " ")


def test_a_vocabulary_of_no_words_is_refused(monkeypatch, capsys):
    code, text = said("hf", monkeypatch, capsys, "--vocab-size", "0")
    assert code == 2
    assert "vocab_size: expected a positive whole number, got 0" in text
