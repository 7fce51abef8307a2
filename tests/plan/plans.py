"""Parallel plans drawn from a seed."""

import random

from blocks.sharding import Mesh, Partial, Replicate, Shard
from recipes.plan.parallel_plan import Fingerprint, ParallelPlan
from recipes.plan.prediction import Prediction, StagePrediction
from recipes.plan.stage_plan import Boundary, ParameterPlacement, Pattern, StagePlan

PLACEMENTS = (Shard(0), Shard(1), Replicate(), Partial())
NODES = (("up mm", "down mm"), ("up mm", "down mm", "gelu"), ("loss",))


def drawn_plan(seed: int) -> ParallelPlan:
    """A plan that keeps the invariants and means nothing."""
    draw = random.Random(seed)
    named = {f"P{at}": _pattern(draw) for at in range(draw.randint(1, 4))}
    stages, first, rank = [], 0, 0
    for _ in range(draw.randint(1, 4)):
        stop, sizes = first + draw.randint(1, 4), (draw.randint(1, 3), draw.randint(1, 3))
        mesh = Mesh(("x", "y"), sizes, tuple(range(rank, rank + sizes[0] * sizes[1])))
        runs = tuple((at, at + 1, draw.choice(sorted(named))) for at in range(first, stop))
        stages.append(StagePlan(first, stop, mesh, draw.random() < 0.5, runs, _prediction(draw)))
        first, rank = stop, rank + mesh.num_ranks
    used = {name for stage in stages for _, _, name in stage.patterns}
    settings = {"model": "m", "seed": draw.randint(0, 9), "num_microbatches": None}
    error = draw.choice([None, draw.random()])
    return ParallelPlan(
        Fingerprint("model", f"{draw.getrandbits(64):x}", first),
        Fingerprint("cluster", f"{draw.getrandbits(64):x}", rank),
        settings,
        draw.choice(["one_f_one_b", "gpipe"]),
        draw.randint(1, 64),
        {name: pattern for name, pattern in named.items() if name in used},
        tuple(stages),
        tuple(_boundary(draw, len(stages)) for _ in range(draw.randint(0, 3) * (len(stages) > 1))),
        Prediction(2 * draw.random(), draw.random(), draw.random(), "made up", error),
        tuple(f"note {at}" for at in range(draw.randint(0, 2))),
    )


def _pattern(draw: random.Random) -> Pattern:
    nodes = draw.choice(NODES)
    places = [draw.choice(["RR", "S(0)R", "P(sum)R"]) for _ in range(3)]
    texts = ("row|-", "-|column", "-|-")
    parameters = {f"{node}.weight": ParameterPlacement(*places) for node in nodes}
    return Pattern({node: draw.choice(texts) for node in nodes}, parameters)


def _prediction(draw: random.Random) -> StagePrediction:
    numbers = [draw.random() * 10 ** draw.randint(-6, 15) for _ in range(9)]
    kinds = draw.sample(["all_reduce", "all_gather", "reduce_scatter"], draw.randint(0, 3))
    collectives = {kind: draw.random() for kind in kinds}
    times, sizes = numbers[:4], numbers[4:]
    return StagePrediction(
        times[0], times[1], times[2], times[3], collectives,
        sizes[0], sizes[1], sizes[2], sizes[3], draw.randint(1, 64), sizes[4],
    )  # fmt: skip


def _boundary(draw: random.Random, num_stages: int) -> Boundary:
    both = tuple(tuple(draw.choice(PLACEMENTS) for _ in range(2)) for _ in range(2))
    source, target = draw.sample(range(num_stages), 2)
    seldom = draw.random() < 0.3
    phase, size = "forward" if source < target else "backward", draw.randint(0, 10**9)
    return Boundary(
        "hidden", phase, source, target, (both[0], both[1]), size, draw.random(), seldom
    )
