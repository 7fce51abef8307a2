"""The run's log: one JSON object per line on disk, one readable line on the screen."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from blocks._checks import check


@dataclasses.dataclass(frozen=True)
class LogEntry:
    """What is known after a step.

    step: steps done, from 1. num_steps: of the whole run.
    loss: mean of the steps since the last entry, in nats per token.
    held_out_loss: nats per token, bits_per_byte: of held-out text; None where not looked at.
    learning_rate: of this step. grad_norm: before clipping, of this step.
    num_tokens: seen since the start. tokens_per_s: since the last entry, looks at held-out text
    left out. num_skipped_steps: steps whose gradient was not finite. eta_s: seconds to go.
    mfu: share of the peak of all processes, as measured by a matrix product at the start.
    memory_bytes: most memory any process has held so far.
    """

    step: int
    num_steps: int
    loss: float
    held_out_loss: float | None
    bits_per_byte: float | None
    learning_rate: float
    grad_norm: float
    num_tokens: int
    tokens_per_s: float
    num_skipped_steps: int
    eta_s: float
    mfu: float = 0.0
    memory_bytes: int = 0

    def line(self) -> str:
        """One line for the screen."""
        seen = (
            "" if self.bits_per_byte is None else f"  held-out {self.bits_per_byte:.3f} bits/byte"
        )
        skipped = f"  skipped {self.num_skipped_steps}" if self.num_skipped_steps else ""
        return (
            f"step {self.step:>5}/{self.num_steps}  loss {self.loss:6.3f}  "
            f"lr {self.learning_rate:.1e}  grad {self.grad_norm:5.2f}  "
            f"{self.tokens_per_s:7,.0f} tokens/s  {100 * self.mfu:.0f} % MFU  "
            f"{self.memory_bytes / 2**30:.1f} GiB  to go {duration(self.eta_s)}{skipped}{seen}"
        )


# What a repeat of the run may change: what was measured of the machine, not the numbers.
TIMINGS = ("tokens_per_s", "eta_s", "mfu", "memory_bytes")


MEASURED = frozenset(field.name for field in dataclasses.fields(LogEntry) if field.type is float)
"""Numbers of every entry that need not be finite."""


def rounded(count: int) -> str:
    """A large number in few digits.

    >>> rounded(912), rounded(28_992), rounded(28_345_600)
    ('912', '29.0 k', '28.3 M')
    """
    for size, unit in ((1_000_000_000, " G"), (1_000_000, " M"), (1_000, " k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def duration(seconds: float) -> str:
    """``75.2`` -> ``1:15``; hours only where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Log(Protocol):
    """Where entries go."""

    def write(self, entry: LogEntry) -> None: ...


class JsonLog:
    """Appends entries to a file; opening it at a step drops what came after that step.

    JSON has no infinities: a number that is not finite (the loss of steps that were all skipped,
    the norm of their gradients) is written as null.
    """

    def __init__(self, path: Path, *, after_step: int) -> None:
        self.path = path
        kept = [entry for entry in read_log(path) if entry["step"] <= after_step]
        draft = path.with_suffix(".draft")
        draft.write_text("".join(map(_line, kept)))
        os.replace(draft, path)

    def write(self, entry: LogEntry) -> None:
        with self.path.open("a") as file:
            file.write(_line(dataclasses.asdict(entry)))


def _line(entry: dict[str, Any]) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log file; a last line cut short by a crash is left out.

    A null in the place of a number that every entry has is read as ``nan``.

    Raises:
        ValueError: a line before the last that is no entry.
    """
    if not path.exists():
        return []
    entries: list[dict[str, Any]] = []
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        entry: Any = None
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
        known = isinstance(entry, dict) and "step" in entry
        check(known, f"{path}, line {number}", "an entry", repr(line[:60]), "move the file away")
        lost = [name for name in MEASURED if name in entry and entry[name] is None]
        entries.append(entry | dict.fromkeys(lost, math.nan))
    return entries


def plot_log(entries: Sequence[dict[str, Any]], path: Path, title: str = "") -> bool:
    """Draw training and held-out loss over tokens; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6.4, 3.6), dpi=110)
    # margins as given: a layout that is worked out costs as much as the drawing
    axes = figure.subplots(gridspec_kw={"left": 0.1, "right": 0.975, "bottom": 0.14, "top": 0.91})
    tokens = [entry["num_tokens"] / 1e6 for entry in entries]
    axes.plot(tokens, [entry["loss"] for entry in entries], color="#8fa8c8", lw=1, label="training")
    seen = [e for e in entries if e["held_out_loss"] is not None]
    axes.plot(
        [entry["num_tokens"] / 1e6 for entry in seen],
        [entry["held_out_loss"] for entry in seen],
        color="#c0392b",
        marker="o",
        ms=3,
        label="held-out text",
    )
    if seen:
        last = seen[-1]
        axes.annotate(
            f"{last['bits_per_byte']:.2f} bits/byte",
            (last["num_tokens"] / 1e6, last["held_out_loss"]),
            textcoords="offset points",
            xytext=(-4, 7),
            ha="right",
            fontsize=9,
            color="#c0392b",
        )
    axes.set(xlabel="million tokens", ylabel="loss, nats per token")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)
    return True
