"""``partition_layers``: which contiguous layers make up which stage. Needs numpy, no torch."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from blocks._checks import check, check_count, check_positive, fail, reading
from blocks.pipeline.capped_sum import Partition, capped_sums_of_parts, least_largest
from blocks.pipeline.least_makespan import least_makespan
from blocks.pipeline.slice_time import Number

StageCost = Callable[[int, int, int], Any]
"""Seconds, or bytes, of the layers ``first`` up to ``stop`` as stage number ``stage``."""


@dataclasses.dataclass(frozen=True)
class StagePartition:
    """Contiguous layers as stages.

    bounds: index of the first layer of every stage and, last, the number of layers.
    costs_s: seconds of every stage per microbatch.
    stage_bytes: bytes every stage needs; empty where memory was not asked about.
    """

    bounds: tuple[int, ...]
    costs_s: tuple[float, ...]
    stage_bytes: tuple[float, ...] = ()

    @property
    def num_layers(self) -> tuple[int, ...]:
        """Of every stage."""
        pairs = zip(self.bounds, self.bounds[1:], strict=False)
        return tuple(stop - first for first, stop in pairs)

    @property
    def bottleneck_s(self) -> float:
        """Seconds of the slowest stage, which sets the pace of all."""
        return max(self.costs_s)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {name: list(values) for name, values in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "StagePartition":
        """
        Raises:
            ValueError: data that is no partition.
        """
        with reading("stage partition", data, cls):
            return cls(**{name: tuple(values) for name, values in data.items()})


def partition_layers(
    layer_costs: Sequence[Number],
    num_stages: int,
    *,
    first_cost: Number = 0,
    last_cost: Number = 0,
    stage_cost: StageCost | None = None,
    num_microbatches: int | None = None,
    memory: Sequence[Number] | StageCost | None = None,
    first_memory: Number = 0,
    last_memory: Number = 0,
    memory_cap: Number | Sequence[Number] | None = None,
) -> StagePartition:
    """Layers to stages so that the slowest stage is as fast as can be.

    Among the partitions whose slowest stage is fastest it is the most even one: the least sum of
    squared costs. With ``num_microbatches`` M the time ``sum t + (M - 1) max t`` of M microbatches
    through all stages is least instead, which differs where what a stage costs is not the sum of
    its layers.

    Args:
        layer_costs: seconds of every layer per microbatch, all passes together.
        num_stages: stages to make, each of at least one layer.
        first_cost: seconds of what the first stage does beside its layers: the embedding.
        last_cost: the same of the last stage: final norm, head and loss.
        stage_cost: seconds of ``(first, stop, stage)`` instead of the three above, for stages
            that cost more or less than their layers.
        memory: bytes of every layer, or of ``(first, stop, stage)`` where stages hold different
            numbers of microbatches.
        first_memory, last_memory: bytes of embedding and head.
        memory_cap: bytes a stage may need; one number or one per stage.

    Raises:
        ValueError: fewer layers than stages; no partition keeps to the memory cap.

    >>> partition_layers([1] * 8, 3, last_cost=2).num_layers
    (3, 3, 2)
    """
    import numpy as np

    num_layers = len(layer_costs)
    check_count("num_stages", num_stages)
    beside = {"first_cost": first_cost, "last_cost": last_cost}
    for name, value in {**beside, "first_memory": first_memory, "last_memory": last_memory}.items():
        check(value >= 0, name, "at least 0", value)
    hint = "every stage holds at least one layer"
    check(num_layers >= num_stages, "layer_costs", f"at least {num_stages}", num_layers, hint)
    check_positive("num_microbatches", num_microbatches)
    check((memory is None) == (memory_cap is None), "memory", "memory and memory_cap", memory)
    stages = range(num_stages)
    ends = {0: first_cost}
    ends[num_stages - 1] = ends.get(num_stages - 1, 0) + last_cost
    seconds = stage_cost or _summed(layer_costs, ends, "layer_costs")
    tables = _tables(seconds, num_layers, num_stages, "cost", alike=stage_cost is None)
    sizes: list[Any] = []
    if memory is not None and memory_cap is not None:
        ends = {0: first_memory}
        ends[num_stages - 1] = ends.get(num_stages - 1, 0) + last_memory
        needed = memory if callable(memory) else _summed(memory, ends, "memory")
        alike = not callable(memory)
        sizes = _tables(needed, num_layers, num_stages, "memory", alike=alike)
        caps = memory_cap if isinstance(memory_cap, Sequence) else [memory_cap] * num_stages
        check(len(caps) == num_stages, "memory_cap", f"{num_stages} numbers", len(caps))
        for stage in stages:
            tables[stage] = np.where(sizes[stage] <= float(caps[stage]), tables[stage], np.inf)
    found = _best(tables, num_microbatches)
    if found is None:
        hint = "use more stages, recompute activations or hold fewer microbatches"
        raise fail("memory_cap", "stages that fit", "no partition that keeps to it", hint)
    spans = [(k, found.bounds[k], found.bounds[k + 1]) for k in stages]
    return StagePartition(
        found.bounds,
        tuple(float(tables[k][i, j]) for k, i, j in spans),
        tuple(float(sizes[k][i, j]) for k, i, j in spans) if sizes else (),
    )


def _best(tables: list[Any], num_microbatches: int | None) -> Partition | None:
    import numpy as np

    if num_microbatches is None:
        fastest = least_largest(tables)
        if fastest is None:
            return None
        # Capped by cost, then summed by squared cost: even stages among equally fast ones.
        squares = [np.where(table <= fastest.largest, table, np.inf) ** 2 for table in tables]
        return capped_sums_of_parts(squares, [np.inf])[0]
    finite = np.concatenate([table[np.isfinite(table)] for table in tables])
    found = least_makespan(
        lambda caps: capped_sums_of_parts(tables, caps),
        np.unique(finite),
        num_microbatches - 1,
        batch=8,
    )
    return None if found is None else found[0]


def _summed(each: Sequence[Number], ends: dict[int, Number], name: str) -> StageCost:
    """Sums over contiguous layers; ``ends`` is added to the first and the last stage."""
    sums = [0.0]
    for layer, value in enumerate(each):
        check(value >= 0, f"{name} of layer {layer}", "at least 0", value)
        sums.append(sums[-1] + float(value))
    return lambda first, stop, stage: sums[stop] - sums[first] + float(ends.get(stage, 0))


def _tables(
    value: StageCost, num_layers: int, num_stages: int, name: str, *, alike: bool
) -> list[Any]:
    """For every stage float64 ``[num_layers + 1, num_layers + 1]``, infinity for stop <= first.

    ``alike``: all but the first and the last stage share one table.
    """
    import numpy as np

    tables = []
    for stage in range(num_stages):
        if alike and 1 < stage < num_stages - 1:
            tables.append(tables[1])
            continue
        table = np.full((num_layers + 1, num_layers + 1), np.inf)
        for first in range(num_layers):
            for stop in range(first + 1, num_layers + 1):
                found = float(value(first, stop, stage))
                what = f"{name} of layers {first} to {stop} as stage {stage}"
                check(found >= 0, what, "at least 0", found)
                table[first, stop] = found
        tables.append(table)
    return tables
