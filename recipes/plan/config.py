"""``PlanConfig``: what a plan is asked for, as flat fields that ``key=value`` can set."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from blocks._checks import check, check_count, check_positive, fail

SCHEDULES = ("one_f_one_b", "eager_1f1b", "gpipe")
"""The families that planned stages run under."""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """A request for a plan.

    model: ``family:size`` (see ``recipes.plan.families``) or ``package.module:factory``.
    cluster: name of a bundled cluster, or a cluster file.
    num_nodes, num_devices: nodes of the cluster, and devices in each, instead of the file's.
    batch_size: rows of a step, over all devices.
    seq_len: tokens of a row, or side of an image; families that have either, None for their own.
    dtype: of parameters and activations; families only.
    gradient_dtype: what gradients are summed in, over microbatches and devices, where parameters
        are narrower; None for the parameters' own dtype. What another stage adds to the
        gradient of a weight that both use comes in the weight's dtype.
    num_microbatches: parts of the batch; searched where None.
    microbatch_choices: most numbers of microbatches that are looked at.
    schedules: families of schedules, separated by commas.
    max_stages: most pipeline stages; None for no limit, 1 for no pipeline.
    max_stage_devices: most devices of a stage; None for no limit, 1 for pipelines alone.
    mesh_axes: most axes of a stage's mesh.
    recompute: whether stages repeat their forward: True, False, or None for where it pays.
    memory_gib: of a device, instead of what the cluster file says.
    optimizer: ``adamw``, ``sgd``, or ``momentum`` for the latter with it; what is kept for every
        element of a parameter. ``muon``, which is AdamW for all but matrices of repeated layers, is
        taken to keep as much; it gathers a matrix over its stage to make it orthogonal.
    idle_devices: whether a plan may leave devices out.
    memory_points: how many trades of time for memory are looked at on every mesh.
    workers: processes that look at meshes side by side; as many as there are cores where None.
    pins: choices made beforehand, ``NAME=PLACEMENTS`` with semicolons between: names of parameters
        or of nodes as plans have them, a placement for each axis of a stage's mesh.
    """

    model: str
    cluster: str = "8xH100"
    num_nodes: int | None = None
    num_devices: int | None = None
    batch_size: int = 64
    seq_len: int | None = None
    dtype: str = "bfloat16"
    gradient_dtype: str | None = None
    num_microbatches: int | None = None
    microbatch_choices: int = 5
    schedules: str = ",".join(SCHEDULES)
    max_stages: int | None = None
    max_stage_devices: int | None = None
    mesh_axes: int = 2
    recompute: bool | None = None
    memory_gib: float | None = None
    optimizer: str = "adamw"
    idle_devices: bool = False
    memory_points: int = 3
    workers: int | None = None
    pins: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_kind(field.name, getattr(self, field.name), field.type)
        for name in ("batch_size", "microbatch_choices", "memory_points"):
            check_count(name, getattr(self, name))
        for name in (
            "num_nodes",
            "num_devices",
            "seq_len",
            "num_microbatches",
            "max_stages",
            "max_stage_devices",
            "workers",
        ):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_positive("memory_gib", self.memory_gib)
        check(self.mesh_axes in (1, 2), "mesh_axes", "1 or 2", self.mesh_axes)
        check(self.optimizer in STATE_BYTES, "optimizer", sorted(STATE_BYTES), self.optimizer)
        for name in self.schedules.split(","):
            check(name in SCHEDULES, "schedules", f"some of {SCHEDULES}", repr(name))
        if self.num_microbatches is not None:
            self.rows(self.num_microbatches)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PlanConfig":
        """What is missing is as it is by default.

        Raises:
            ValueError: data that is no request.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        others = sorted(set(map(str, data)) - known)
        hint = "plan again, or use the release that wrote it"
        ok = not others and "model" in data
        check(ok, "settings", "a model and fields of PlanConfig", others, hint)
        return cls(**data)

    def rows(self, num_microbatches: int) -> int:
        """Rows of a microbatch.

        Raises:
            ValueError: a batch that cannot be cut so.
        """
        rows, over = divmod(self.batch_size, num_microbatches)
        if over:
            able = [m for m in range(1, self.batch_size + 1) if self.batch_size % m == 0]
            above = next((m for m in able if m > num_microbatches), able[-1])
            below = max(m for m in able if m < above or m == 1)
            near = " or ".join(map(str, sorted({below, above})))
            expected = f"a divisor of batch_size={self.batch_size}"
            raise fail("num_microbatches", expected, num_microbatches, f"such as {near}")
        return rows

    def microbatches(self) -> tuple[int, ...]:
        """Numbers of microbatches to look at: divisors of the batch, evenly spread by ratio."""
        if self.num_microbatches is not None:
            return (self.num_microbatches,)
        found = [m for m in range(1, self.batch_size + 1) if self.batch_size % m == 0]
        wanted = min(len(found), self.microbatch_choices)
        if wanted == 1:
            return (found[-1],)
        steps = [found[-1] ** (at / (wanted - 1)) for at in range(wanted)]
        return tuple(sorted({min(found, key=lambda m: abs(m / s - s / m)) for s in steps}))


def _check_kind(name: str, value: object, kind: Any) -> None:
    kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
    kinds = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join("None" if one is type(None) else one.__name__ for one in kinds)
        raise fail(name, expected, repr(value))


STATE_BYTES = {"adamw": 8.0, "muon": 8.0, "sgd": 0.0, "momentum": 4.0}
"""Bytes the optimizer keeps for an element of a parameter, in float32; in proportion for wider
parameters, and with a float32 copy for narrower ones."""
