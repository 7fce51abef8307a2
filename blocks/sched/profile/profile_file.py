"""Profiles as plain text: one fact a line, seconds and bytes, sources first.

    llm-blocks profile 1
    model: BERT-1.3B
    device: V100-SXM2-16GB
    published: AlpaServe (Li et al., 2023), ...

    configuration 1 x 2                  # op x pp
    weight_bytes: 1313000000 1313000000  # a stage
    batch 1: 0.04816 0.04991             # seconds a stage

Autoregressive models have ``kv_bytes_per_token: N``, ``prefill TOKENS: seconds a stage`` and
``decode BATCH CONTEXT: seconds a stage`` lines. What follows a ``#`` is for readers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from blocks._checks import fail
from blocks.sched.profile.configuration import Configuration
from blocks.sched.profile.profile import KINDS, Profile, Provenance
from blocks.sched.profile.timing import BatchTime, DecodeTime, PrefillTime, Timing

FIRST_LINE = "llm-blocks profile 1"
T = TypeVar("T")
TABLES = {"batch": ("batches", BatchTime), "prefill": ("prefill", PrefillTime)}
TABLES |= {"decode": ("decode", DecodeTime)}
COUNTS = ("activation_bytes", "kv_bytes_per_token")
HEADS = ("model", "device")


def format_profile(profile: Profile) -> str:
    """The text of a profile; ``parse_profile`` gives back an equal one."""
    lines = [FIRST_LINE, f"model: {profile.model}", f"device: {profile.device}"]
    lines += [f"{kind}: {text}" for kind, text in profile.provenance]
    for timing in profile.timings:
        lines += ["", f"configuration {timing.configuration}"]
        lines.append("weight_bytes: " + " ".join(map(str, timing.weight_bytes)))
        lines += [f"{name}: {getattr(timing, name)}" for name in COUNTS if getattr(timing, name)]
        for word, (name, _) in TABLES.items():
            for row in getattr(timing, name):
                counts = " ".join(map(str, row[:-1]))
                lines.append(f"{word} {counts}: " + " ".join(map(repr, row.stage_s)))
    return "\n".join(lines) + "\n"


def parse_profile(text: str, name: str = "profile") -> Profile:
    """Read a profile.

    Args:
        name: of the text, for messages.

    Raises:
        ValueError: a line that is not understood, with its number; or facts that do not agree.
    """
    return _Reader(name).read(text)


def load_profile(path: Path) -> Profile:
    """Read a profile file.

    Raises:
        ValueError: see ``parse_profile``.
    """
    return parse_profile(path.read_text(), path.name)


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile file."""
    path.write_text(format_profile(profile))


class _Reader:
    """Goes through the lines once; ``number`` is the line at hand, for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 1
        self.heads: dict[str, str] = {}
        self.provenance: list[Provenance] = []
        self.timings: list[Timing] = []
        self.open: dict[str, Any] = {}
        self.opened = 0

    def read(self, text: str) -> Profile:
        lines = text.splitlines()
        if not lines or lines[0].strip() != FIRST_LINE:
            self.fail(repr(FIRST_LINE), repr(lines[0] if lines else ""))
        for self.number, raw in enumerate(lines[1:], 2):
            line = raw.split("#", 1)[0].strip()
            if line:
                self._line(line)
        self._close()
        self.number = max(self.number, 1)
        for head in HEADS:
            if head not in self.heads:
                self.fail(f"a line '{head}: ...' somewhere above", "the end")
        provenance = tuple(self.provenance)
        timings = tuple(sorted(self.timings, key=lambda timing: timing.configuration))
        return self.checked(
            lambda: Profile(self.heads["model"], self.heads["device"], provenance, timings)
        )

    def fail(self, expected: str, got: str) -> None:
        raise fail(f"{self.name} line {self.number}", expected, got)

    def checked(self, make: Callable[[], T]) -> T:
        """What ``make`` gives; its complaints get the line's number."""
        try:
            return make()
        except ValueError as error:
            raise ValueError(f"{self.name} line {self.number}: {error}") from error

    def _line(self, line: str) -> None:
        if line.split()[0] == "configuration":
            self._close()
            configuration = self.checked(lambda: Configuration.parse(line[len("configuration") :]))
            if any(timing.configuration == configuration for timing in self.timings):
                self.fail("each configuration once", repr(line))
            self.open, self.opened = {"configuration": configuration}, self.number
            return
        head, colon, rest = line.partition(":")
        words, values = head.split(), rest.split()
        if not colon or not words or not values:
            self.fail("'name: values' or 'configuration op x pp'", repr(line))
        if self.open:
            self._fact(words, values, line)
        elif len(words) == 1 and words[0] in HEADS:
            if words[0] in self.heads:
                self.fail(f"one line '{words[0]}'", "a second one")
            self.heads[words[0]] = " ".join(values)
        elif len(words) == 1 and words[0] in KINDS:
            self.provenance.append(Provenance(words[0], " ".join(values)))
        else:
            known = ", ".join((*HEADS, *KINDS))
            self.fail(f"one of {known}, before the first configuration", repr(line))

    def _fact(self, words: list[str], values: list[str], line: str) -> None:
        name, *keys = words
        if name in TABLES and len(keys) == len(TABLES[name][1]._fields) - 1:
            field, row_type = TABLES[name]
            row = row_type(*self._numbers(keys, int, 1), self._numbers(values, float, 0))
            self.open.setdefault(field, []).append(row)
        elif name in ("weight_bytes", *COUNTS) and not keys:
            if name in self.open:
                self.fail(f"one line '{name}' a configuration", "a second one")
            counts = self._numbers(values, int, 0)
            if name in COUNTS and len(counts) != 1:
                self.fail(f"one number of {name}", repr(line))
            self.open[name] = counts if name == "weight_bytes" else counts[0]
        else:
            known = "weight_bytes, activation_bytes, kv_bytes_per_token, batch N, prefill TOKENS"
            self.fail(f"{known} or decode BATCH CONTEXT, then ': ' and values", repr(line))

    def _numbers(self, words: Sequence[str], kind: type, least: int) -> tuple[Any, ...]:
        try:
            numbers = tuple(kind(word) for word in words)
        except ValueError:
            numbers = ()
        if not numbers or not all(least <= number < float("inf") for number in numbers):
            what = "whole numbers" if kind is int else "finite numbers"
            self.fail(f"{what} from {least}", repr(" ".join(words)))
        return numbers

    def _close(self) -> None:
        """The configuration being read is complete."""
        if not self.open:
            return
        last, self.number = self.number, self.opened
        if "weight_bytes" not in self.open:
            self.fail(
                f"a line 'weight_bytes: ...' in configuration {self.open['configuration']}", "none"
            )
        rows = {field: tuple(sorted(self.open.get(field, ()))) for field, _ in TABLES.values()}
        self.timings.append(self.checked(lambda: Timing(**{**self.open, **rows})))
        self.open, self.number = {}, last
