"""``Layout``: how processes are arranged, and which rows of a batch each of them works on."""

import dataclasses
import os
from typing import NamedTuple

import torch

from blocks._checks import check, fail
from recipes.train.config import TrainConfig
from recipes.train.planned import parallel_plan


class Position(NamedTuple):
    """Where a process stands: which replica, which pipeline rank, which tensor-parallel rank."""

    dp: int
    pp: int
    tp: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """``dp * pp * tp`` processes; neighbours in rank are tensor-parallel first, then pipelined.

    >>> layout = Layout(dp=2, pp=2)
    >>> layout.position(3), layout.pipeline(1), layout.replicas(0)
    (Position(dp=1, pp=1, tp=0), (2, 3), (0, 2))
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1

    @property
    def num_ranks(self) -> int:
        return self.dp * self.pp * self.tp

    def position(self, rank: int) -> Position:
        rest, tp = divmod(rank, self.tp)
        return Position(*divmod(rest, self.pp), tp)

    def rank(self, dp: int, pp: int, tp: int = 0) -> int:
        return (dp * self.pp + pp) * self.tp + tp

    def pipeline(self, dp: int, tp: int = 0) -> tuple[int, ...]:
        """Ranks of one replica's pipeline, in its order."""
        return tuple(self.rank(dp, pp, tp) for pp in range(self.pp))

    def tensor(self, dp: int, pp: int) -> tuple[int, ...]:
        """Ranks that share the layers of one pipeline rank."""
        return tuple(self.rank(dp, pp, tp) for tp in range(self.tp))

    def replicas(self, pp: int, tp: int = 0) -> tuple[int, ...]:
        """Ranks that hold the same parameters, in the order of their lanes."""
        return tuple(self.rank(dp, pp, tp) for dp in range(self.dp))


def layout_of(config: TrainConfig) -> Layout:
    """Of a run; the devices of a parallel plan share all layers, as the plan has it."""
    plan = parallel_plan(config)
    if plan is not None:
        return Layout(tp=plan.num_devices)
    return Layout(config.dp, config.pp, config.tp)


def check_layout(config: TrainConfig) -> None:
    """Refuse a resolved config whose parts do not fit together, before any process starts.

    Raises:
        ValueError: naming the setting and what would do.
    """
    lanes, rows = config.lanes, config.microbatch
    assert lanes is not None, "resolved"
    expected = f"a multiple of dp ({config.dp})"
    check(lanes % config.dp == 0, "lanes", expected, lanes, "lanes are dealt out evenly")
    if config.canonical:
        even = lanes & (lanes - 1) == 0
        hint = "they are as many as dp unless given; or canonical=false for a plain all-reduce"
        check(even, "lanes", "a power of two", lanes, hint)
    expected = f"a multiple of lanes ({lanes})"
    check(config.batch_size % lanes == 0, "batch_size", expected, config.batch_size)
    lane_rows = config.batch_size // lanes
    assert rows is not None, "a batch that divides into lanes has a microbatch"
    check(lane_rows % rows == 0, "microbatch", f"a divisor of the {lane_rows} rows a lane", rows)
    most = config.context_len
    check(config.slices <= most, "slices", f"at most context_len ({most})", config.slices)
    num_stages = config.pp * config.chunks
    if config.layers_per_stage is None:
        expected = f"at most num_layers ({config.num_layers}) stages"
        check(num_stages <= config.num_layers, "pp", expected, num_stages, "or layers_per_stage=")
    stage_layers(config)
    if config.pp == 1:
        hint = "a schedule orders pipeline ranks; pass pp=2 or more"
        check(config.schedule == "auto", "schedule", "auto with pp=1", config.schedule, hint)
        check(config.chunks == 1, "chunks", "1 with pp=1", config.chunks)
        several = config.trace is not None and lanes > config.dp
        check(not several, "trace", "none with pp=1 and several lanes a process", config.trace)
    heads = config.num_heads
    hint = "tensor-parallel ranks take whole heads"
    check(heads % config.tp == 0, "tp", f"a divisor of num_heads ({heads})", config.tp, hint)
    if config.fsdp:
        hint = "replicas share parameters among them; pass dp=2 or more"
        check(config.dp > 1, "dp", "at least 2 with fsdp=true", config.dp, hint)
    if config.compile and (config.tp > 1 or config.fsdp):
        raise fail("compile", "false with tp > 1 or fsdp=true", True, "collectives are not traced")
    if config.device == "cuda":
        found = torch.cuda.is_available()
        check(found, "device", "cpu on this machine", "cuda", "torch finds no accelerator")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", layout_of(config).num_ranks))
        most = torch.cuda.device_count()
        hint = "every process has one to itself; torchrun spreads processes over machines"
        check(
            here <= most,
            "processes on this machine",
            f"at most {most} for as many accelerators",
            here,
            hint,
        )
    if config.compile and config.slices > 1:
        raise fail("compile", "false with slices > 1", True, "each slice would compile anew")


def stage_layers(config: TrainConfig) -> tuple[range, ...]:
    """The layers of every stage.

    Raises:
        ValueError: ``layers_per_stage`` that does not add up.
    """
    num_stages, text = config.pp * config.chunks, config.layers_per_stage
    if text is None:
        counts = even_layers(config.num_layers, num_stages)
    else:
        parts = text.split(",")
        hint = "one number a stage, such as 3,5"
        digits = all(part.strip().isdecimal() for part in parts)
        check(digits, "layers_per_stage", "numbers with commas between", repr(text), hint)
        counts = tuple(int(part) for part in parts)
        check(len(counts) == num_stages, "layers_per_stage", f"{num_stages} numbers", text, hint)
        total = sum(counts)
        check(total == config.num_layers, "layers_per_stage", f"sum {config.num_layers}", total)
    ends = [sum(counts[: stage + 1]) for stage in range(num_stages)]
    return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))


def even_layers(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Layers of each stage, as even as can be, the odd ones in the middle.

    The ends have the embedding and the head besides.

    >>> even_layers(6, 4)
    (1, 2, 2, 1)
    """
    base, odd = divmod(num_layers, num_stages)
    first = (num_stages - odd) // 2
    return tuple(base + (first <= stage < first + odd) for stage in range(num_stages))
