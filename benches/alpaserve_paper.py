"""Published attainments of AlpaServe's own simulator and cluster, and our simulation of them.

24 models of BERT-2.6B on 16 V100s, 40 requests a second in all, Gamma gaps with a CV of 4, a trace
of 200 seconds (alpa-projects/mms, experiments/ablation/align_simulator_2022_12_12).
"""

from typing import NamedTuple

import numpy as np

from blocks.sched.cluster_sim import ALPASERVE_FAST, ClusterSim
from blocks.sched.placement import Placement
from blocks.sched.profile import Configuration, bundled_profile
from blocks.sched.workload import gamma_workload, power_law_rates

NAMES = tuple(f"model {index:02}" for index in range(24))
PROFILES = dict.fromkeys(NAMES, bundled_profile("bert-2.6b"))


def _replicated() -> Placement:
    """Two models fit on a device: 32 replicas of 24 models, eight models twice."""
    hosted: list[list[str]] = [[] for _ in range(16)]
    for name in (*NAMES, *NAMES[:8]):
        fewest = min((one for one in hosted if name not in one), key=len)
        fewest.append(name)
    return Placement.equal_groups(16, Configuration(1, 1), hosted)


REPLICATED = _replicated()
PIPELINES = Placement.equal_groups(16, Configuration(1, 8), [NAMES[0::2], NAMES[1::2]])
PUBLISHED = {
    "selective replication": (
        REPLICATED,
        {1.5: 0.302, 2: 0.368, 3: 0.485, 4: 0.578, 5: 0.640, 6: 0.689, 8: 0.771, 10: 0.826},
    ),
    "two pipelines of eight": (
        PIPELINES,
        {2: 0.806, 3: 0.921, 4: 0.965, 5: 0.979, 6: 0.987, 8: 0.996, 10: 0.997},
    ),
}
"""Placement, and the simulated attainment by SLO scale; its real cluster was within 1.6 points."""


class Replayed(NamedTuple):
    """Mean and standard deviation over traces of 200 seconds, and what was published."""

    mean: float
    deviation: float
    published: float


def replay(num_traces: int = 20) -> dict[tuple[str, float], Replayed]:
    """Our attainment for every published one."""
    budget = 13 * 2**30
    latency_s = PROFILES[NAMES[0]].latency_s()
    rates = power_law_rates(24, 40.0, 0.0)
    found: dict[tuple[str, float], list[float]] = {}
    for seed in range(num_traces):
        rng = np.random.default_rng(seed)
        trace = gamma_workload(rates, 4.0, 200.0, rng, NAMES)
        for scale in sorted({scale for _, table in PUBLISHED.values() for scale in table}):
            sim = ClusterSim(PROFILES, trace.with_slo(scale * latency_s), overheads=ALPASERVE_FAST)
            for name, (placement, table) in PUBLISHED.items():
                assert not placement.problems(PROFILES, budget, 16)
                if scale in table:
                    attained = sim.run(placement).attainment
                    found.setdefault((name, scale), []).append(attained)
    return {
        (name, scale): Replayed(
            float(np.mean(values)), float(np.std(values)), PUBLISHED[name][1][scale]
        )
        for (name, scale), values in found.items()
    }
