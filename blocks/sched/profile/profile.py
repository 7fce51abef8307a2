"""``Profile``: how long a model takes in each configuration, what it weighs, and who says so."""

import dataclasses
from typing import NamedTuple

from blocks._checks import check, check_count, fail
from blocks.sched.profile.configuration import Configuration
from blocks.sched.profile.timing import BatchTime, DecodeTime, PrefillTime, Timing

KINDS = ("published", "measured", "simulated", "derived", "note")
"""What a provenance line may begin with."""


class Provenance(NamedTuple):
    """Where numbers come from: ``kind`` is one of ``KINDS``, ``text`` one line."""

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Profile:
    """A model on one kind of device, as the placement of many models needs to know it.

    model: its name.
    device: the kind of device that was timed.
    provenance: where the numbers come from, at least one line that is no note.
    timings: one per configuration, by rising (op, pp).

    >>> profile = single_pass("tiny", "CPU", {(1, 1): [0.1], (1, 2): [0.05, 0.06]}, 10**9)
    >>> profile.timing(Configuration(1, 2)).requests_per_s()
    16.666666666666668
    """

    model: str
    device: str
    provenance: tuple[Provenance, ...]
    timings: tuple[Timing, ...]

    def __post_init__(self) -> None:
        for what, text in (("model", self.model), ("device", self.device)):
            ok = bool(text) and text == " ".join(text.split()) and "#" not in text
            check(ok, what, "a name on one line, single spaces, no #", repr(text))
        for kind, text in self.provenance:
            check(kind in KINDS, "provenance", f"one of {KINDS}", repr(kind))
            ok = bool(text) and text == " ".join(text.split()) and "#" not in text
            check(ok, "provenance", "a text on one line, single spaces, no #", repr(text))
        sources = [line for line in self.provenance if line.kind != "note"]
        hint = "say where the numbers come from"
        check(bool(sources), f"provenance of {self.model}", "a source", "none", hint)
        names = [timing.configuration for timing in self.timings]
        ordered = bool(names) and names == sorted(set(names))
        check(ordered, f"timings of {self.model}", "each configuration once, rising", names)

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        """Those that were timed."""
        return tuple(timing.configuration for timing in self.timings)

    def find(self, configuration: tuple[int, int]) -> Timing | None:
        """Times and bytes of a configuration; None where it was not timed."""
        return next((t for t in self.timings if t.configuration == configuration), None)

    def timing(self, configuration: tuple[int, int]) -> Timing:
        """Times and bytes of a configuration.

        Raises:
            ValueError: one that was not timed.
        """
        found = self.find(configuration)
        if found is None:
            known = ", ".join(map(str, self.configurations))
            got = str(Configuration(*configuration))
            raise fail(f"configuration of {self.model}", f"one of {known}", got)
        return found

    def latency_s(self, configuration: tuple[int, int] = (1, 1), batch_size: int = 1) -> float:
        """Seconds of a lone batch in a configuration; alone on one device if none is given."""
        return self.timing(configuration).latency_s(batch_size)

    def renamed(self, model: str) -> "Profile":
        """The same numbers under another model's name."""
        return dataclasses.replace(self, model=model)

    def scaled(
        self, model: str, *, time: float | int = 1, weight: float | int = 1, why: str
    ) -> "Profile":
        """A profile derived from this one: times and bytes multiplied, and ``why`` in its lines."""
        line = Provenance("derived", f"times x {time:g}, bytes x {weight:g} of {self.model}: {why}")
        timings = tuple(_scaled(timing, time, weight) for timing in self.timings)
        return Profile(model, self.device, (*self.provenance, line), timings)


def _scaled(timing: Timing, time: float | int, weight: float | int) -> Timing:
    def longer(stage_s: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(second * time for second in stage_s)

    return dataclasses.replace(
        timing,
        weight_bytes=tuple(round(count * weight) for count in timing.weight_bytes),
        activation_bytes=round(timing.activation_bytes * weight),
        kv_bytes_per_token=round(timing.kv_bytes_per_token * weight),
        batches=tuple(BatchTime(row.batch_size, longer(row.stage_s)) for row in timing.batches),
        prefill=tuple(PrefillTime(row.num_tokens, longer(row.stage_s)) for row in timing.prefill),
        decode=tuple(DecodeTime(*row[:2], longer(row.stage_s)) for row in timing.decode),
    )


def single_pass(
    model: str,
    device: str,
    stage_s: dict[tuple[int, int], list[float]],
    weight_bytes: int,
    source: str = "made up for an example",
) -> Profile:
    """A profile of batch 1 alone, weights cut evenly over the devices of each configuration."""
    check_count("weight_bytes", weight_bytes, least=0)
    timings = []
    for (op, pp), seconds in sorted(stage_s.items()):
        each = (-(-weight_bytes // (op * pp)),) * pp
        batches = (BatchTime(1, tuple(seconds)),)
        timings.append(Timing(Configuration(op, pp), each, batches=batches))
    return Profile(model, device, (Provenance("derived", source),), tuple(timings))
