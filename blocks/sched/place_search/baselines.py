"""Placements to compare with: replicas on single devices, dealt round, swapped as traffic goes."""

from collections.abc import Mapping
from types import MappingProxyType

from blocks._checks import check_count, check_positive
from blocks.sched.cluster_sim import ClusterSim
from blocks.sched.place_search.greedy import greedy_selection
from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.simulator import Settings
from blocks.sched.place_search.switch import PCIE_BYTES_PER_S
from blocks.sched.place_search.timeline import Timeline
from blocks.sched.place_search.trial import Evaluator, canonical
from blocks.sched.place_search.useful import useful_configurations
from blocks.sched.placement import Placement
from blocks.sched.profile import Configuration, Profile
from blocks.sched.workload import Workload

SINGLE = Configuration(1, 1)
FOUR_STAGES = Configuration(1, 4)


def selective_replication(
    workload: Workload,
    profiles: Mapping[str, Profile],
    num_devices: int,
    memory_bytes: int,
    settings: Settings = MappingProxyType({}),
) -> Placement:
    """Algorithm 1 on groups of one device: models are replicated, never spread.

    Args:
        settings: of ``ClusterSim``.
    """
    check_count("num_devices", num_devices)
    memory = Memory(profiles, memory_bytes)
    evaluate = Evaluator(ClusterSim(profiles, workload, **settings), workload, memory)
    useful = useful_configurations(workload, profiles)
    empty = [(SINGLE, ())] * num_devices
    return greedy_selection(evaluate, memory, empty, workload.models, useful=useful).placement


def round_robin(
    workload: Workload,
    profiles: Mapping[str, Profile],
    num_devices: int,
    memory_bytes: int,
    configuration: Configuration = FOUR_STAGES,
) -> Placement:
    """Models dealt in turn over equal groups, again and again until nothing more fits.

    Devices that are too few for another group stay idle.
    """
    check_count("num_devices", num_devices)
    memory = Memory(profiles, memory_bytes)
    hosted: list[tuple[str, ...]] = [()] * (num_devices // configuration.num_devices)
    at, fitted = 0, bool(hosted)
    while fitted:
        fitted = False
        for model in workload.models:
            for step in range(len(hosted)):
                to = (at + step) % len(hosted)
                if model not in hosted[to] and memory.holds(configuration, (*hosted[to], model)):
                    hosted[to] = (*hosted[to], model)
                    at, fitted = to + 1, True
                    break
    return canonical((configuration, models) for models in hosted)


def swapping(
    workload: Workload,
    profiles: Mapping[str, Profile],
    num_devices: int,
    memory_bytes: int,
    *,
    every_s: float | int,
    bytes_per_s: float | int = PCIE_BYTES_PER_S,
    settings: Settings = MappingProxyType({}),
) -> Timeline:
    """Selective replication solved anew for every window, knowing its traffic: Clockwork++.

    Args:
        every_s: seconds of a window.
        bytes_per_s: to each device, while its models are swapped; infinite for swaps that cost
            nothing, which is what Li et al. grant it.
        settings: of ``ClusterSim``.
    """
    check_positive("every_s", every_s)
    found = [
        selective_replication(window, profiles, num_devices, memory_bytes, settings)
        for window in windows(workload, every_s)
    ]
    return Timeline.of(found, every_s, profiles, bytes_per_s)


def windows(workload: Workload, every_s: float | int) -> list[Workload]:
    """The workload in pieces of ``every_s`` seconds, each on its own clock."""
    count = max(1, int(-(-workload.duration_s // every_s)))
    starts = [index * float(every_s) for index in range(count)]
    stops = [*starts[1:], float("inf")]
    return [workload.slice(start, stop) for start, stop in zip(starts, stops, strict=True)]
