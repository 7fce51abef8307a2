"""``Problem``: the arrays that one simulation reads, the same for both loops."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blocks._checks import check, fail
from blocks.sched.cluster_sim.settings import KINDS, Event, Overheads
from blocks.sched.placement.group import Group
from blocks.sched.profile.profile import Profile

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
PENDING, FINISHED, REJECTED, UNPLACED, FAILED = range(5)
"""What became of a request: not answered yet, answered, refused because its deadline could not be
met, refused because no group was up that hosts its model, and lost with a group that stopped."""


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Requests, replicas and faults as arrays. A replica is a model in a group.

    arrival_s, model, deadline_s: of each request, by arrival.
    noise: factor on each stage time by request and stage; a (0, 0) array for none.
    num_stages, gap_s: of each group.
    replica_group, replica_model: of each replica, sorted by model, then group.
    model_first: first replica of each model, and the end.
    size_first: first batch size of each replica, and the end.
    sizes: batch sizes, rising in each replica.
    stage_first: for each of ``sizes`` where its stage times begin in ``stage_s``.
    stage_s: seconds of all stages of all batch sizes of all replicas.
    event_s, event_kind, event_group, event_replica, event_seconds: faults, in order; the group is
        never -1, the replica is -1 for all of the group.
    up, loaded: of each group and replica, before the first event.
    dispatch: index into ``DISPATCH``.
    batching, admit, retry: see ``simulate``.
    request_s: see ``Overheads``.
    """

    arrival_s: Floats
    model: Ints
    deadline_s: Floats
    noise: Floats
    num_stages: Ints
    gap_s: Floats
    replica_group: Ints
    replica_model: Ints
    model_first: Ints
    size_first: Ints
    sizes: Ints
    stage_first: Ints
    stage_s: Floats
    event_s: Floats
    event_kind: Ints
    event_group: Ints
    event_replica: Ints
    event_seconds: Floats
    up: Ints
    loaded: Ints
    dispatch: int
    batching: bool
    admit: bool
    retry: bool
    request_s: float


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What became of every request of a problem.

    status: one of ``FINISHED``, ``REJECTED``, ``UNPLACED``, ``FAILED``.
    answered_s: when it was told so.
    group: that answered or refused it; -1 where none was asked.
    busy_s: stage seconds of the work that each group brought to an end.
    """

    status: npt.NDArray[np.int8]
    answered_s: Floats
    group: Ints
    busy_s: Floats

    @classmethod
    def pending(cls, num_requests: int, num_groups: int) -> "Answers":
        """Nothing has happened yet."""
        return cls(
            np.full(num_requests, PENDING, np.int8),
            np.full(num_requests, np.nan),
            np.full(num_requests, -1, np.int32),
            np.zeros(num_groups),
        )


def replica_tables(
    groups: Sequence[Group],
    models: Sequence[str],
    profiles: Mapping[str, Profile],
    overheads: Overheads,
    batching: bool,
) -> dict[str, npt.NDArray[Any]]:
    """The part of a problem that depends on groups and profiles.

    Args:
        models: those the requests are for, in the order of their indices; others are left out.
    """
    index = {model: at for at, model in enumerate(models)}
    hosted = [(m, g) for g, group in enumerate(groups) for m in group.models if m in index]
    pairs = sorted((index[model], g) for model, g in hosted)
    size_first, sizes, stage_first, stage_s = [0], [], [], []
    for model, g in pairs:
        configuration = groups[g].configuration
        timing = profiles[models[model]].timing(configuration)
        scale = 1.0 + overheads.per_stage * configuration.pp
        rows = timing.batches if batching else timing.batches[:1]
        if not rows or rows[0].batch_size != 1:
            got = timing.batch_sizes
            raise fail(f"profile of {models[model]} in {configuration}", "times of batch 1", got)
        for batch_size, seconds in rows:
            sizes.append(batch_size)
            stage_first.append(len(stage_s))
            stage_s += [second * scale for second in seconds]
        size_first.append(len(sizes))
    counts = np.bincount([model for model, _ in pairs], minlength=len(models)).astype(np.int64)
    num_stages = [group.configuration.pp for group in groups]
    return {
        "num_stages": np.array(num_stages, np.int32),
        "gap_s": np.array([overheads.gap_of(count) for count in num_stages], np.float64),
        "replica_group": np.array([g for _, g in pairs], np.int32),
        "replica_model": np.array([model for model, _ in pairs], np.int32),
        "model_first": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "size_first": np.array(size_first, np.int32),
        "sizes": np.array(sizes, np.int32),
        "stage_first": np.array(stage_first, np.int32),
        "stage_s": np.array(stage_s, np.float64),
    }


def event_tables(
    events: Sequence[Event],
    models: Sequence[str],
    replica_group: Ints,
    replica_model: Ints,
    num_groups: int,
) -> dict[str, npt.NDArray[Any]]:
    """The part of a problem that depends on faults."""
    pairs = list(zip(replica_group.tolist(), replica_model.tolist(), strict=True))
    index = {model: at for at, model in enumerate(models)}
    rows: list[tuple[float, int, int, int, float]] = []
    up, loaded = np.ones(num_groups, np.int32), np.ones(len(pairs), np.int32)
    seen_groups: set[int] = set()
    seen_replicas: set[int] = set()
    for event in sorted(events, key=lambda event: event.at_s):
        kind = KINDS.index(event.kind)
        for group in range(num_groups) if event.group < 0 else [event.group]:
            replica = -1
            if event.model:
                pair = (group, index.get(event.model, -1))
                if pair not in pairs:
                    continue
                replica = pairs.index(pair)
            rows.append((event.at_s, kind, group, replica, event.seconds))
            if event.kind in ("up", "down") and group not in seen_groups:
                seen_groups.add(group)
                up[group] = event.kind == "down"
            if event.kind in ("load", "unload"):
                own = [r for r, (g, _) in enumerate(pairs) if g == group]
                for one in set(own if replica < 0 else [replica]) - seen_replicas:
                    seen_replicas.add(one)
                    loaded[one] = event.kind == "unload"
    columns = list(zip(*rows, strict=True)) or [(), (), (), (), ()]
    return {
        "event_s": np.array(columns[0], np.float64),
        "event_kind": np.array(columns[1], np.int32),
        "event_group": np.array(columns[2], np.int32),
        "event_replica": np.array(columns[3], np.int32),
        "event_seconds": np.array(columns[4], np.float64),
        "up": up,
        "loaded": loaded,
    }


def check_noise(noise: Floats, num_requests: int, num_stages: int) -> None:
    """
    Raises:
        ValueError: factors that are not there for every request and stage, or not above 0.
    """
    if noise.size == 0 and not num_requests:
        return
    ok = noise.ndim == 2 and len(noise) == num_requests and noise.shape[1] >= num_stages
    wanted = f"factors of {num_requests} requests and at least {num_stages} stages"
    check(ok, "noise", wanted, noise.shape)
    check(bool((noise > 0).all()), "noise", "factors above 0", noise.min())
