"""``Shortage``: the stage for which memory is short. Needs no torch."""

from typing import NamedTuple

from blocks.pipeline.inter_op.submesh import SubmeshShape


class Shortage(NamedTuple):
    """The stage that is furthest over its cap, in the plan that is over it by least.

    stage: its number. num_stages, schedule, num_microbatches: of that plan.
    first, stop: its layers, half open. shape, option: how it is run.
    fixed_bytes, microbatch_bytes, transient_bytes: see ``StageCost``.
    in_flight: microbatches it holds.
    cap_bytes: of its devices.
    """

    stage: int
    num_stages: int
    schedule: str
    num_microbatches: int
    first: int
    stop: int
    shape: SubmeshShape
    option: str
    fixed_bytes: float
    microbatch_bytes: float
    transient_bytes: float
    in_flight: int
    cap_bytes: float

    @property
    def needed_bytes(self) -> float:
        """What it holds at its peak."""
        return self.fixed_bytes + self.transient_bytes + self.microbatch_bytes * self.in_flight

    @property
    def short_bytes(self) -> float:
        """What it holds over its cap."""
        return self.needed_bytes - self.cap_bytes

    def __str__(self) -> str:
        parts = "one stage" if self.num_stages == 1 else f"{self.num_stages} stages"
        microbatches = (
            f"{self.num_microbatches} microbatch{'es'[: 2 * (self.num_microbatches > 1)]}"
        )
        return (
            f"{parts}, {self.schedule}, {microbatches}: stage {self.stage}, layers {self.first} to "
            f"{self.stop - 1} on {self.shape}, needs {self.needed_bytes:.6g} of "
            f"{self.cap_bytes:.6g}"
        )
