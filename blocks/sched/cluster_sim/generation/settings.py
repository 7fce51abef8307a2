"""``EngineSettings``: how the engines of a simulated cluster are set."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from blocks._checks import check, check_count, check_positive
from blocks.sched.allocator import Allocator

AllocatorFactory = Callable[[int, int], Allocator]
"""``factory(num_usable_blocks, block_size)``"""

TURNS = ("due", "round")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Of every engine; see ``Scheduler`` for what is not said here.

    token_budget: most tokens a step computes.
    max_num_seqs: most sequences running at a time.
    max_model_len: most tokens of a sequence.
    block_size: token slots a block of the key-value cache.
    num_lanes: batches that an engine has on their way through several stages at a time, as
        ``EngineConfig.pp_batches`` of ``recipes.serve``; None: one a stage, which keeps all of them
        at work. Over a single stage there is one.
    overlap: steps of several engines follow one another through a group's stages; else an engine
        begins when the others' steps are through all of them, and where several have work, each
        has one batch on its way, of all its sequences.
    turns: which engine of a group begins the next step: the one whose most urgent request is due
        first, or the one that has waited longest.
    """

    token_budget: int = 512
    max_num_seqs: int = 64
    max_model_len: int = 8192
    block_size: int = 16
    num_lanes: int | None = 1
    overlap: bool = True
    turns: Literal["due", "round"] = "due"

    def __post_init__(self) -> None:
        for name in ("token_budget", "max_num_seqs", "max_model_len", "block_size"):
            check_count(name, getattr(self, name))
        if self.num_lanes is not None:
            check_count("num_lanes", self.num_lanes)
        check(self.turns in TURNS, "turns", f"one of {TURNS}", repr(self.turns))

    def lanes(self, num_stages: int) -> int:
        """Batches that an engine may have on their way through so many stages.

        >>> EngineSettings(num_lanes=None).lanes(4), EngineSettings(num_lanes=2).lanes(1)
        (4, 1)
        """
        if num_stages == 1:
            return 1
        return num_stages if self.num_lanes is None else self.num_lanes

    def holds_s(self, stage_s: Sequence[float]) -> float:
        """Seconds for which a step keeps the group's other engines waiting."""
        return max(stage_s) if self.overlap else sum(stage_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Admission:
    """What is refused at the front door.

    ttft: a request whose first token is predicted to come too late.
    tpot: a request whose tokens are predicted to come too slowly, once it runs.
    slack: predictions may exceed the limits by this factor.
    """

    ttft: bool = True
    tpot: bool = True
    slack: float = 1.0

    def __post_init__(self) -> None:
        check_positive("slack", self.slack)
