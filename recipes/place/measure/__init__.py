"""Profiles measured on this machine, and real groups held against simulated ones."""

from recipes.place.measure.clocked_group import ClockedGroup, processor_time
from recipes.place.measure.compared import Compared, Gap
from recipes.place.measure.contention import Contention, ContentionMeter
from recipes.place.measure.group_profile import GroupTimer, measure_group_profile
from recipes.place.measure.local_groups import local_groups
from recipes.place.measure.measure_profile import measure_profile
from recipes.place.measure.pace import at_pace, pace
from recipes.place.measure.points import Points
from recipes.place.measure.port import Port
from recipes.place.measure.replay import replay
from recipes.place.measure.speed import Probe, measure_speed
from recipes.place.measure.step_pace import StepPace
from recipes.place.measure.step_timer import StepTimer
from recipes.place.measure.virtual_time import VirtualTimeLoop, run_virtual

__all__ = [
    "ClockedGroup",
    "Compared",
    "Contention",
    "ContentionMeter",
    "Gap",
    "GroupTimer",
    "Points",
    "Port",
    "Probe",
    "StepPace",
    "StepTimer",
    "VirtualTimeLoop",
    "at_pace",
    "local_groups",
    "measure_group_profile",
    "measure_profile",
    "measure_speed",
    "pace",
    "processor_time",
    "replay",
    "run_virtual",
]
