"""Random stage tables, and every plan they allow."""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np

from blocks.pipeline.inter_op import StageCost, StageTable, SubmeshShape, submeshes

Plan = tuple[tuple[int, int, int, int], ...]
"""Indices of first bound, last bound, shape and option of every stage."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A table and the cluster it is for."""

    table: StageTable
    num_hosts: int
    devices_per_host: int
    kinds: tuple[str, ...] = ()


def random_case(
    rng: random.Random,
    num_layers: int,
    num_hosts: int,
    devices_per_host: int,
    *,
    num_options: int = 1,
    transfers: bool = True,
    once: bool = True,
    kinds: Sequence[str] = (),
    rough: bool | None = None,
) -> Case:
    """Whole numbers everywhere; ``rough`` tables know no order among stages, others scale."""
    shapes = submeshes(num_hosts, devices_per_host, kinds=kinds)
    rough = rng.random() < 0.5 if rough is None else rough
    layers = [rng.randint(20, 200) for _ in range(num_layers)]
    speed = {kind: rng.choice([1.0, 0.5, 0.25]) for kind in kinds or [""]}

    def stage(first: int, stop: int, shape: SubmeshShape, option: str) -> StageCost | None:
        if rng.random() < 0.05:
            return None
        work = sum(layers[first:stop])
        each = work / (shape.size ** rng.uniform(0.6, 1.0) * speed[shape.kind])
        forward = rng.randint(1, 400) if rough else 1 + round(each)
        return StageCost(
            forward,
            rng.randint(1, 500) if rough else 1 + round(each * rng.uniform(0.9, 1.3)),
            rng.choice([0, forward // 2, round(0.9 * forward)]),
            rng.randint(0, 300) if once else 0,
            rng.randint(0, 40) * (stop - first),
            rng.randint(0, 10) * (stop - first),
            rng.randint(0, 10),
        )

    def transfer(layer: int, before: SubmeshShape, after: SubmeshShape) -> tuple[float, float]:
        return (rng.randint(0, 60), rng.randint(0, 60)) if transfers else (0, 0)

    options = tuple(f"o{n}" for n in range(num_options))
    table = StageTable.evaluate(range(num_layers + 1), shapes, options, stage, transfer=transfer)
    return Case(table, num_hosts, devices_per_host, tuple(kinds))


def every_plan(case: Case, *, idle: bool = False) -> Iterator[Plan]:
    """Without regard to memory."""
    table = case.table
    devices = dict.fromkeys(case.kinds or [""], 0)
    for host in range(case.num_hosts):
        devices[case.kinds[host] if case.kinds else ""] += case.devices_per_host
    exists = np.isfinite(table.cells["forward_s"])
    last = len(table.bounds) - 1

    def extend(first: int, left: dict[str, int], plan: Plan) -> Iterator[Plan]:
        if first == last:
            if idle or not any(left.values()):
                yield plan
            return
        stops, shapes = range(first + 1, last + 1), enumerate(table.shapes)
        for stop, (m, shape) in itertools.product(stops, shapes):
            if shape.size <= left[shape.kind]:
                rest = {**left, shape.kind: left[shape.kind] - shape.size}
                for option in np.flatnonzero(exists[first, stop, m]):
                    yield from extend(stop, rest, (*plan, (first, stop, m, int(option))))

    yield from extend(0, devices, ())
