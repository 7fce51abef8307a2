"""Small clusters drawn at random: profiles, placements, what is observed of them."""

import functools
import random
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from blocks.sched.placement import Group, Placement, group_bytes
from blocks.sched.profile import (
    Configuration,
    DecodeTime,
    PrefillTime,
    Profile,
    Provenance,
    Timing,
)
from recipes.place.fleet.observed import Hosted, Observed, ObservedGroup

NAMES: tuple[str, ...] = ("a", "b", "c", "d")
WEIGHTS: dict[str, int] = {"a": 400, "b": 300, "c": 200, "d": 100}
"""Bytes of the models; a token of cache takes one."""
MEMORY = 600
BLOCK_SIZE = 4
SHAPES = (Configuration(1, 1), Configuration(2, 1), Configuration(1, 2))


@functools.cache
def profile(name: str, time: float = 1.0) -> Profile:
    """A prompt takes 10 ms and 1 ms a token; a decode step 10 ms and 1 ms a sequence."""
    timings = []
    for op, pp in sorted(SHAPES):

        def cut(seconds: float, count: int = op * pp, stages: int = pp) -> tuple[float, ...]:
            return (time * seconds / count,) * stages

        each = WEIGHTS[name] // (op * pp)
        timings.append(
            Timing(
                Configuration(op, pp),
                (each,) * pp,
                kv_bytes_per_token=1,
                prefill=tuple(PrefillTime(n, cut(0.01 + n * 1e-3)) for n in (1, 1001)),
                decode=tuple(
                    DecodeTime(b, c, cut(0.01 + b * 1e-3)) for b in (1, 101) for c in (1, 1001)
                ),
            )
        )
    return Profile(name, "made up", (Provenance("derived", "made up"),), tuple(timings))


PROFILES: Mapping[str, Profile] = {name: profile(name) for name in NAMES}


def fits(group: Group) -> bool:
    """The block of every cache that holds no tokens counted."""
    rooms = tuple((room // BLOCK_SIZE + 1) * BLOCK_SIZE for room in group.kv_tokens)
    return group_bytes(group._replace(kv_tokens=rooms), PROFILES) <= MEMORY


def group(devices: Sequence[int], *models: str, shape: Configuration | None = None) -> Group:
    """With room for 50 tokens each."""
    shape = shape or next(one for one in SHAPES if one.num_devices == len(devices))
    return Group(tuple(devices), shape, models, (50,) * len(models))


def two(*models: str) -> Placement:
    """Two groups that host the same."""
    return Placement((group([0], *models), group([1], *models)))


def seen(*groups: Group, ready: bool = True) -> tuple[ObservedGroup, ...]:
    """Groups as they are observed."""
    return tuple(
        ObservedGroup(
            g.devices,
            g.configuration,
            tuple(Hosted(m, g.kv_tokens_of(m), ready) for m in g.models),
        )
        for g in groups
    )


def draw_placement(rng: random.Random, num_devices: int = 4) -> Placement:
    """One that can be carried out; devices may be left over."""
    devices = rng.sample(range(num_devices), num_devices)
    groups = []
    while devices:
        shape = rng.choice(SHAPES)
        taken, devices = devices[: shape.num_devices], devices[shape.num_devices :]
        if len(taken) < shape.num_devices or rng.random() < 0.2:
            continue
        made = Group(tuple(sorted(taken)), shape)
        for name in rng.sample(NAMES, len(NAMES)):
            more = made.hosting(name, rng.choice((10, 50, 150)))
            if fits(more) and rng.random() < 0.5:
                made = more
        groups.append(made)
    return Placement(tuple(groups))


def draw_observed(rng: random.Random, num_devices: int = 4, *, calm: bool = False) -> Observed:
    """A cluster in any state; ``calm`` ones have nothing under way, failed or lost."""
    groups = []
    for one in draw_placement(rng, num_devices).groups:
        replicas = tuple(
            Hosted(model, one.kv_tokens_of(model), calm or rng.random() < 0.5)
            for model in one.models
        )
        groups.append(ObservedGroup(one.devices, one.configuration, replicas))
    wanted = frozenset(name for name in NAMES if rng.random() < 0.5)
    if calm:
        return Observed(tuple(groups), wanted=wanted)
    busy = frozenset(d for g in groups if rng.random() < 0.25 for d in g.devices)
    lost = {rng.randrange(num_devices) for _ in range(rng.randrange(3))}
    waiting = frozenset(
        (one.devices, model)
        for one in draw_placement(rng, num_devices).groups
        for model in ("", *one.models)
        if rng.random() < 0.5
    )
    lost -= {d for g in groups for d in g.devices}
    return Observed(tuple(groups), busy, waiting, frozenset(lost), wanted)


rngs = st.integers(0, 2**32 - 1).map(random.Random)
