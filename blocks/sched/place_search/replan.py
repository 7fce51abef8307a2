"""Re-planning under drift: change the placement where that serves more than the change costs."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from blocks._checks import check, check_positive
from blocks.sched.cluster_sim import ClusterSim
from blocks.sched.place_search.baselines import selective_replication, windows
from blocks.sched.place_search.local_search import improve
from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.place import place
from blocks.sched.place_search.shapes import configurations_of
from blocks.sched.place_search.simulator import Settings
from blocks.sched.place_search.switch import PCIE_BYTES_PER_S, Switch, switch
from blocks.sched.place_search.timeline import Timeline
from blocks.sched.place_search.trial import Evaluator, contents
from blocks.sched.place_search.useful import useful_configurations
from blocks.sched.placement import Placement
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload

POOL = 4


class Replan(NamedTuple):
    """Whether to change the placement now.

    switch: to the better one; None where staying is best.
    stay: attainment of the forecast if nothing changes.
    go: attainment with the switch at its start, seconds away included; equal to ``stay`` without.
    """

    switch: Switch | None
    stay: float
    go: float


class ReplanPlan(NamedTuple):
    """Placements over time for a workload that is known.

    timeline: the best of those below.
    attainment: what it attains over the whole workload, switches included.
    static, swapped, adapted: attainment of one placement for all time, of ``swapping`` at the same
        cost, and of changes chosen window by window.
    """

    timeline: Timeline
    attainment: float
    static: float
    swapped: float
    adapted: float


def replan(
    current: Placement,
    forecast: Workload,
    profiles: Mapping[str, Profile],
    num_devices: int,
    memory_bytes: int,
    *,
    bytes_per_s: float | int = PCIE_BYTES_PER_S,
    least_gain: float = 0.002,
    local_simulations: int = 100,
    settings: Settings = MappingProxyType({}),
) -> Replan:
    """Compare staying with small changes of the current placement and with placing anew.

    Args:
        forecast: traffic for as long as the answer shall hold, for example the last window's.
        least_gain: attainment that a switch must add, for a forecast is never sure.
        local_simulations: of the search for small changes, and of ``place``.
        settings: of ``ClusterSim``.
    """
    check(0 <= least_gain < 1, "least_gain", "a share of requests from 0", least_gain)
    candidates = _candidates(
        current, forecast, profiles, num_devices, memory_bytes, local_simulations, settings
    )
    stay = Timeline(current).serve(profiles, forecast, **settings).attainment
    best: tuple[float, float, Switch | None] = (stay + least_gain, 0.0, None)
    for candidate in candidates:
        change = switch(current, candidate, profiles, bytes_per_s)
        attainment = (
            Timeline(current, ((0.0, change),)).serve(profiles, forecast, **settings).attainment
        )
        if (attainment, -change.away_device_s) > best[:2]:
            best = (attainment, -change.away_device_s, change)
    return Replan(best[2], stay, stay if best[2] is None else best[0])


def _candidates(
    current: Placement,
    forecast: Workload,
    profiles: Mapping[str, Profile],
    num_devices: int,
    memory_bytes: int,
    local_simulations: int,
    settings: Settings,
) -> list[Placement]:
    memory = Memory(profiles, memory_bytes)
    evaluate = Evaluator(ClusterSim(profiles, forecast, **settings), forecast, memory)
    near = improve(
        evaluate,
        memory,
        evaluate(contents(current)),
        forecast.models,
        configurations_of(profiles, forecast.models),
        num_devices,
        simulations=local_simulations,
        useful=useful_configurations(forecast, profiles),
    )
    anew = place(
        forecast,
        profiles,
        num_devices,
        memory_bytes,
        local_simulations=local_simulations,
        settings=settings,
    )
    return [near.placement, anew.placement]


def replan_over_time(
    workload: Workload,
    profiles: Mapping[str, Profile],
    num_devices: int,
    memory_bytes: int,
    *,
    every_s: float | int,
    bytes_per_s: float | int = PCIE_BYTES_PER_S,
    local_simulations: int = 50,
    settings: Settings = MappingProxyType({}),
) -> ReplanPlan:
    """Placements for windows of a known workload that serve most, switches included.

    Candidates are the placement of the whole workload, and for each window the one found for it
    alone and its selective replication (which is what ``swapping`` goes to). Of each window the
    best ``POOL`` are kept, and the way through them is found by dynamic programming over windows,
    a switch costing the time its groups are away. The answer is never below one placement for all
    time, nor below ``swapping`` at the same cost, as both are simulated too.
    """
    check_positive("every_s", every_s)
    pieces = windows(workload, every_s)
    whole = place(
        workload,
        profiles,
        num_devices,
        memory_bytes,
        local_simulations=local_simulations,
        settings=settings,
    ).placement
    replicated = [
        selective_replication(piece, profiles, num_devices, memory_bytes, settings)
        for piece in pieces
    ]
    alone = [
        place(
            piece,
            profiles,
            num_devices,
            memory_bytes,
            local_simulations=local_simulations,
            settings=settings,
        ).placement
        for piece in pieces
    ]
    pool = list(dict.fromkeys([whole, *alone, *replicated]))
    path = _best_path(pool, pieces, replicated, whole, profiles, bytes_per_s, settings)
    timelines = {
        "static": Timeline(whole),
        "swapped": Timeline.of(replicated, every_s, profiles, bytes_per_s),
        "adapted": Timeline.of(path, every_s, profiles, bytes_per_s),
    }
    attained = {
        name: timeline.serve(profiles, workload, **settings).attainment
        for name, timeline in timelines.items()
    }
    best = max(attained, key=lambda name: attained[name])
    return ReplanPlan(timelines[best], attained[best], **attained)


def _best_path(
    pool: Sequence[Placement],
    pieces: Sequence[Workload],
    replicated: Sequence[Placement],
    whole: Placement,
    profiles: Mapping[str, Profile],
    bytes_per_s: float | int,
    settings: Settings,
) -> list[Placement]:
    """One placement a window: the most requests served, windows being served apart."""
    kept: list[list[Placement]] = []
    for index, piece in enumerate(pieces):
        sim = ClusterSim(profiles, piece, **settings)
        shares = {placement: sim.run(placement).attainment for placement in pool}
        best = sorted(pool, key=lambda placement: shares[placement], reverse=True)[:POOL]
        before = kept[-1][:2] if kept else []
        kept.append(list(dict.fromkeys([*best, whole, replicated[index], *before])))
    served: dict[Placement, tuple[int, list[Placement]]] = {}
    for options, piece in zip(kept, pieces, strict=True):
        arrived: dict[Placement, tuple[int, list[Placement]]] = {}
        for placement in options:
            ways: list[tuple[int, list[Placement]]] = []
            if not served:
                met = Timeline(placement).serve(profiles, piece, **settings).met
                ways.append((int(met.sum()), [placement]))
            for before, (count, path) in served.items():
                change = switch(before, placement, profiles, bytes_per_s)
                met = Timeline(before, ((0.0, change),)).serve(profiles, piece, **settings).met
                ways.append((count + int(met.sum()), [*path, placement]))
            arrived[placement] = max(ways, key=lambda way: way[0])
        served = arrived
    return max(served.values(), key=lambda way: way[0])[1]
