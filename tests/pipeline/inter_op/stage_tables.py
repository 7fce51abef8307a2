"""Random stage tables, and every plan they allow."""

import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from blocks.pipeline.inter_op import (
    InterOpPlan,
    StageCost,
    StageTable,
    SubmeshShape,
    partition_mesh,
    submeshes,
)
from blocks.pipeline.inter_op.flow import FLOWS
from blocks.pipeline.inter_op.makespans import makespans
from blocks.pipeline.inter_op.priced import Priced

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
    slowest_hop: int = 60,
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
        return rng.randint(0, slowest_hop), rng.randint(0, slowest_hop)

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


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A case and what is asked of it."""

    case: Case
    schedule: str
    num_microbatches: int
    cap: float
    idle: bool

    def priced(self, depth: int | None = None) -> Priced:
        """For plans with so many stages, where that matters."""
        caps = [self.cap] * len(self.case.table.shapes)
        depth = depth if FLOWS[self.schedule].follows_depth else None
        return Priced(self.case.table, self.schedule, self.num_microbatches, caps, depth)

    def partition(self, **options: Any) -> InterOpPlan:
        """The plan of these."""
        case = self.case
        return partition_mesh(
            case.table,
            case.num_hosts,
            case.devices_per_host,
            kinds=case.kinds,
            num_microbatches=self.num_microbatches,
            memory_cap_bytes=self.cap,
            schedules=[self.schedule],
            idle_devices=self.idle,
            **options,
        )


def draw(rng: random.Random, *, max_layers: int, devices_per_host: int | None = None) -> Drawn:
    """A small case: one or two kinds of devices, one or two options, tight or loose caps."""
    kinds = rng.choice([(), (), ("a", "b")])
    per_host = devices_per_host or (2 if kinds else rng.choice([2, 4]))
    case = random_case(
        rng,
        rng.randint(max(1, max_layers - 4), max_layers),
        len(kinds) or rng.choice([1, 2, 2]),
        per_host,
        num_options=rng.choice([1, 2]) if max_layers < 8 else 1,
        slowest_hop=rng.choice([0, 60, 60, 600]),
        kinds=kinds,
    )
    schedule = rng.choice(["one_f_one_b", "eager_1f1b", "gpipe", "zb_h1", "zb_h2"])
    cap = rng.choice([40, 80, 150, 300, float("inf")])
    return Drawn(case, schedule, rng.choice([1, 2, 4, 8, 16]), cap, rng.random() < 0.3)


def fitting(plans: Iterable[Plan], drawn: Drawn, priced: Priced | None = None) -> list[Plan]:
    """Plans whose every stage keeps to the cap, by the memory of their own number of stages, or
    as ``priced`` counts it."""
    found, by_depth = [], {}
    for plan in plans:
        depth = len(plan)
        if depth not in by_depth:
            by_depth[depth] = priced or drawn.priced(depth)
        to_end = range(depth, 0, -1)
        if all(by_depth[depth].fits(n)[stage] for n, stage in zip(to_end, plan, strict=True)):
            found.append(plan)
    return found


def plans_together(case: Case, *, idle: bool, most: int = 20_000) -> Iterator[np.ndarray]:
    """``every_plan`` by arrays ``[plan, stage, 4]``, each of plans of equally many stages."""
    table, kinds = case.table, [*dict.fromkeys(case.kinds or [""])]
    last = len(table.bounds) - 1
    hosts = np.array([kinds.index(kind) for kind in case.kinds or [""] * case.num_hosts])
    devices = np.bincount(hosts) * case.devices_per_host
    every = np.argwhere(np.isfinite(table.cells["forward_s"]))
    sizes = np.zeros((len(table.shapes), len(kinds)), int)
    for m, shape in enumerate(table.shapes):
        sizes[m, kinds.index(shape.kind)] = shape.size
    begun = [(np.zeros((1, 0, 4), np.int8), devices[None])]
    while begun:
        plans, left = begun.pop()
        at = plans[:, -1, 1] if plans.shape[1] else np.zeros(len(plans), int)
        for k in np.unique(at):
            rows, stages = np.flatnonzero(at == k), every[every[:, 0] == k]
            rest = left[rows][:, None] - sizes[stages[:, 2]][None]
            row, stage = np.nonzero((rest >= 0).all(axis=2))
            longer = np.concatenate([plans[rows[row]], stages[stage][:, None].astype(np.int8)], 1)
            rest, ended = rest[row, stage], stages[stage, 1] == last
            done = ended & (idle | ~rest.any(axis=1))
            if done.any():
                yield longer[done]
            goes_on = ~ended & rest.any(axis=1)
            longer, rest = longer[goes_on], rest[goes_on]
            for first in range(0, len(longer), most):
                begun.append((longer[first : first + most], rest[first : first + most]))


def best_simulated(drawn: Drawn, *, together: int = 20_000) -> tuple[float, int]:
    """The least makespan over every plan that fits, and how many plans there are."""
    best, num_plans = float("inf"), 0
    waiting: dict[int, list[np.ndarray]] = {}

    def simulate(depth: int) -> None:
        nonlocal best
        found = np.concatenate(waiting.pop(depth))
        for first in range(0, len(found), together):
            some = found[first : first + together]
            best = min(best, float(makespans(drawn.priced(depth), some).min()))

    for plans in plans_together(drawn.case, idle=drawn.idle):
        num_plans, depth = num_plans + len(plans), plans.shape[1]
        priced, where = drawn.priced(depth), plans.transpose(2, 1, 0)
        fits = [priced.fits(depth - n)[tuple(where[:, n])] for n in range(depth)]
        waiting.setdefault(depth, []).append(plans[np.logical_and.reduce(fits)])
        if sum(map(len, waiting[depth])) >= together:
            simulate(depth)
    for depth in [*waiting]:
        simulate(depth)
    return best, num_plans
