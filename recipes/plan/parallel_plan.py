"""``ParallelPlan``: how a model is trained on a cluster, as a versioned text file. No torch."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks._checks import check, check_count, fail, reading
from blocks.pipeline.schedules import SCHEDULES
from recipes.plan.plan_file import check_version, read_plan, write_plan
from recipes.plan.prediction import Prediction
from recipes.plan.stage_plan import Boundary, Pattern, StagePlan

FORMAT, VERSION = "blocks parallel plan", 2
"""The version is another one whenever a file of the one before would no longer be read, or be read
as something else: a field or setting that goes or means something else. New settings have defaults
that plans without them were made with."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a plan was made for: a model or a cluster.

    name: for people.
    digest: of all that matters to the plan.
    size: layers of a model, devices of a cluster.
    """

    name: str
    digest: str
    size: int

    def check_same(self, what: str, other: "Fingerprint") -> None:
        """
        Raises:
            ValueError: something else than the plan was made for.
        """
        if self.digest != other.digest:
            hint = "plan again, or load what it was made for"
            raise fail(f"{what} of the plan", self, other, hint)

    def __str__(self) -> str:
        return f"{self.name} ({self.size}, {self.digest[:12]})"


@dataclasses.dataclass(frozen=True)
class ParallelPlan:
    """Which devices do which part of a training step, in which order.

    Invariants, which the constructor checks:
    1. stages cover the layers in order, each layer once;
    2. no device is in two stages, or none of the cluster;
    3. every pattern named exists, and every pattern is named;
    4. there is a schedule of that name.

    model, cluster: what it was made for.
    settings: what was asked for; ``whatif`` and ``pin`` start from it.
    schedule: name of a family of ``blocks.pipeline.schedules``.
    num_microbatches: parts of the batch that go through the stages in turn.
    patterns: how the nodes of layers are spread, by name.
    stages: in the order data flows through them forward.
    boundaries: what goes between stages.
    predicted: seconds of the step, and how good that is.
    notes: the binding limit and what would change it, a sentence each.
    """

    model: Fingerprint
    cluster: Fingerprint
    settings: Mapping[str, Any]
    schedule: str
    num_microbatches: int
    patterns: Mapping[str, Pattern]
    stages: tuple[StagePlan, ...]
    boundaries: tuple[Boundary, ...]
    predicted: Prediction
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count("num_microbatches", self.num_microbatches)
        known = self.schedule in SCHEDULES
        check(known, "schedule", f"one of {', '.join(SCHEDULES)}", repr(self.schedule))
        at = 0
        for stage in self.stages:
            check(stage.first == at, "stages", f"one from layer {at}", stage.first)
            at = stage.stop
        check(at == self.model.size, "stages", f"all {self.model.size} layers", at)
        devices = [rank for stage in self.stages for rank in stage.mesh.ranks]
        check(len(set(devices)) == len(devices), "devices", "each in one stage", devices)
        size = self.cluster.size
        check(max(devices) < size, "devices", f"numbers below {size}", max(devices))
        named = {name for stage in self.stages for _, _, name in stage.patterns}
        check(named == set(self.patterns), "patterns", sorted(named), sorted(self.patterns))
        texts = all(isinstance(note, str) for note in self.notes)
        check(texts, "notes", "texts", list(self.notes))
        for boundary in self.boundaries:
            known = {boundary.source, boundary.target} <= set(range(len(self.stages)))
            check(known, "boundary", f"stages below {len(self.stages)}", boundary)

    @property
    def num_devices(self) -> int:
        """That it uses."""
        return sum(stage.mesh.num_ranks for stage in self.stages)

    @property
    def peak_bytes(self) -> float:
        """Of the device that holds most."""
        return max(stage.predicted.peak_bytes for stage in self.stages)

    def stage_of(self, layer: int) -> int:
        """Which stage a layer is in."""
        check(0 <= layer < self.model.size, "layer", f"below {self.model.size}", layer)
        return next(at for at, stage in enumerate(self.stages) if layer < stage.stop)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": dataclasses.asdict(self.model),
            "cluster": dataclasses.asdict(self.cluster),
            "settings": dict(self.settings),
            "schedule": self.schedule,
            "num_microbatches": self.num_microbatches,
            "predicted": self.predicted.to_json(),
            "notes": list(self.notes),
            "stages": [stage.to_json() for stage in self.stages],
            "boundaries": [boundary.to_json() for boundary in self.boundaries],
            "patterns": _packed(self.patterns),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ParallelPlan":
        """
        Raises:
            ValueError: data that is no plan, or of a version that is not known here.
        """
        check_version(data, FORMAT, VERSION)
        fields = [field.name for field in dataclasses.fields(cls)]
        with reading("parallel plan", data, [*fields, "format", "version"]):
            return cls(
                Fingerprint(**data["model"]),
                Fingerprint(**data["cluster"]),
                dict(data["settings"]),
                data["schedule"],
                data["num_microbatches"],
                _unpacked(data["patterns"]),
                tuple(StagePlan.from_json(stage) for stage in data["stages"]),
                tuple(Boundary.from_json(boundary) for boundary in data["boundaries"]),
                Prediction.from_json(data["predicted"]),
                tuple(data["notes"]),
            )

    def write(self, path: str | Path) -> Path:
        """Write the file; a line for each choice, so that two plans can be compared."""
        return write_plan(path, self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> "ParallelPlan":
        """
        Raises:
            ValueError: no plan there.
        """
        return cls.from_json(read_plan(path, "recipes.plan"))


def _packed(patterns: Mapping[str, Pattern]) -> dict[str, Any]:
    """Patterns of the same nodes are written as what differs from the first of them."""
    packed: dict[str, Any] = {}
    for name, pattern in patterns.items():
        written = pattern.to_json()
        for other, base in packed.items():
            first = patterns[other].to_json()
            same = all(set(first[part]) == set(written[part]) for part in written)
            if "like" not in base and same:
                differs = {
                    part: {k: v for k, v in written[part].items() if first[part][k] != v}
                    for part in written
                }
                packed[name] = {"like": other, **differs}
                break
        else:
            packed[name] = written
    return packed


def _unpacked(data: Mapping[str, Any]) -> dict[str, Pattern]:
    found: dict[str, Pattern] = {}
    for name, written in data.items():
        if "like" in written:
            base = data.get(written["like"], written)
            check("like" not in base, f"pattern {name}", "like one that is whole", written["like"])
            parts = {part: {**base[part], **written[part]} for part in base}
            extra = set(written) - {"like", *base}
            check(not extra, f"pattern {name}", "no other keys", sorted(extra))
            found[name] = Pattern.from_json(parts)
        else:
            found[name] = Pattern.from_json(written)
    return found
