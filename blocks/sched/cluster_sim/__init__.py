"""A cluster of groups that serve many models, as discrete events.

``simulate`` answers every request of a workload under one placement; ``ClusterSim`` does so for
many placements and simulates again only what changed. Two loops give the same answers bit for bit:
a readable one in Python and one in C++. Needs ``numpy``, and no torch.
"""

from blocks.sched.cluster_sim.cluster_sim import ClusterSim, simulate, stage_noise
from blocks.sched.cluster_sim.outcome import Outcome
from blocks.sched.cluster_sim.problem import FAILED, FINISHED, REJECTED, UNPLACED
from blocks.sched.cluster_sim.settings import (
    ALPASERVE_FAST,
    DISPATCH,
    Event,
    Overheads,
)

__all__ = [
    "ALPASERVE_FAST",
    "DISPATCH",
    "FAILED",
    "FINISHED",
    "REJECTED",
    "UNPLACED",
    "ClusterSim",
    "Event",
    "Outcome",
    "Overheads",
    "simulate",
    "stage_noise",
]
