"""Which models to host where: placements searched for by simulating the workload on them.

Needs no torch; numpy only for workloads.
"""

from blocks.sched.place_search.baselines import round_robin, selective_replication, swapping
from blocks.sched.place_search.beam import beam_selection
from blocks.sched.place_search.bound import Bound, attainment_bound
from blocks.sched.place_search.buckets import bucketings, latency_classes
from blocks.sched.place_search.device_splits import device_splits
from blocks.sched.place_search.exhaustive import Exhaustive, count_placements, exhaustive_search
from blocks.sched.place_search.generation_simulator import GenerationSimulator
from blocks.sched.place_search.greedy import greedy_selection
from blocks.sched.place_search.local_search import improve
from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.place import place
from blocks.sched.place_search.placement_plan import PlacementPlan
from blocks.sched.place_search.replan import Replan, ReplanPlan, replan, replan_over_time
from blocks.sched.place_search.shake import shake
from blocks.sched.place_search.shapes import configurations_of, group_shapes, mixed_shapes
from blocks.sched.place_search.simulator import Settings, Simulated, Simulator
from blocks.sched.place_search.switch import Load, Switch, switch
from blocks.sched.place_search.timeline import Timeline
from blocks.sched.place_search.trial import Evaluator, Score, Trial, canonical

__all__ = [
    "Bound",
    "Evaluator",
    "Exhaustive",
    "GenerationSimulator",
    "Load",
    "Memory",
    "PlacementPlan",
    "Replan",
    "ReplanPlan",
    "Score",
    "Settings",
    "Simulated",
    "Simulator",
    "Switch",
    "Timeline",
    "Trial",
    "attainment_bound",
    "beam_selection",
    "bucketings",
    "canonical",
    "configurations_of",
    "count_placements",
    "device_splits",
    "exhaustive_search",
    "greedy_selection",
    "group_shapes",
    "improve",
    "latency_classes",
    "mixed_shapes",
    "place",
    "replan",
    "replan_over_time",
    "round_robin",
    "selective_replication",
    "shake",
    "swapping",
    "switch",
]
