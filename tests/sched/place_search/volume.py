"""Many random cases at once: run apart from the type checks of the test run, and as figures."""

import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from blocks.sched.cluster_sim import ClusterSim
from blocks.sched.place_search import (
    Evaluator,
    Memory,
    PlacementPlan,
    exhaustive_search,
    place,
    replan_over_time,
    selective_replication,
    swapping,
)
from tests.sched.place_search.cases import Case, draw, drifting


class Compared(NamedTuple):
    """What came of many cases.

    cases: how many.
    kept: in how many the promise was kept.
    exact: in how many the answer is the best there is.
    worst: largest share of requests by which an answer fell short.
    placements: of all cases together.
    """

    cases: int
    kept: int
    exact: int
    worst: float
    placements: int


def solved(case: Case, **options: int) -> PlacementPlan:
    return place(
        case.workload,
        case.profiles,
        case.num_devices,
        case.memory_bytes,
        configurations=case.configurations,
        beam_simulations=options.get("beam_simulations", 400),
        local_simulations=options.get("local_simulations", 300),
    )


def against_all_placements(
    seeds: Sequence[int], max_models: int, max_devices: int, max_placements: int
) -> Compared:
    """Within 1 % of the best of all placements, and the bound above that."""
    kept, exact, worst, placements = 0, 0, 0.0, 0
    for seed in seeds:
        case = draw(seed, max_models, max_devices, 300, max_placements=max_placements)
        memory = Memory(case.profiles, case.memory_bytes)
        evaluate = Evaluator(ClusterSim(case.profiles, case.workload), case.workload, memory)
        best = exhaustive_search(
            evaluate, memory, case.workload.models, case.configurations, case.num_devices
        )
        plan, top = solved(case), best.trial.score.attainment
        kept += top - 0.01 <= plan.attainment <= top + 1e-12 and top <= plan.bound + 1e-12
        exact += plan.attainment == top
        worst = max(worst, top - plan.attainment)
        placements += best.placements
    return Compared(len(seeds), kept, exact, worst, placements)


def against_replication(seeds: Sequence[int], max_models: int, max_devices: int) -> Compared:
    """Never below selective replication."""
    kept, exact, worst = 0, 0, 0.0
    for seed in seeds:
        case = draw(seed, max_models, max_devices, 1000, 4.0)
        plan = solved(case, beam_simulations=0, local_simulations=0)
        single = selective_replication(
            case.workload, case.profiles, case.num_devices, case.memory_bytes
        )
        attained = ClusterSim(case.profiles, case.workload).run(single).attainment
        kept += attained <= plan.attainment + 1e-12
        exact += plan.gap == 0
        worst = max(worst, attained - plan.attainment)
    return Compared(len(seeds), kept, exact, worst, 0)


def against_swapping(seeds: Sequence[int], bytes_per_s: float) -> Compared:
    """Never below selective replication solved anew every window, at equal switching cost."""
    kept, exact, worst = 0, 0, 0.0
    for seed in seeds:
        workload, profiles, num_devices, memory_bytes, every_s = drifting(seed)
        plan = replan_over_time(
            workload,
            profiles,
            num_devices,
            memory_bytes,
            every_s=every_s,
            bytes_per_s=bytes_per_s,
            local_simulations=20,
        )
        swaps = swapping(
            workload, profiles, num_devices, memory_bytes, every_s=every_s, bytes_per_s=bytes_per_s
        )
        attained = swaps.serve(profiles, workload).attainment
        kept += attained <= plan.attainment + 1e-12
        exact += plan.adapted >= attained
        worst = max(worst, attained - plan.attainment)
    return Compared(len(seeds), kept, exact, worst, 0)


def apart(call: str) -> str:
    """The value of an expression over this module, from a process of its own."""
    code = f"from tests.sched.place_search.volume import *\nprint({call})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return run.stdout.strip() or run.stderr
