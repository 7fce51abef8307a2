"""A model-parallel group that serves several models in turns: a process, and the handle to it.

``Listener.open()`` waits for groups to call; ``listener.start(spec, exec_group)`` starts one and
returns its ``GroupHandle``; the process runs ``run_group(spec)``.
"""

from recipes.place.group.faults import GroupLost, LoadFailed, LostReason, NotHosted, WorkLost
from recipes.place.group.handle import GroupHandle
from recipes.place.group.listener import Listener
from recipes.place.group.local import GroupProcess, StartGroup, exec_group, fork_group
from recipes.place.group.replica import Loaded, Replica
from recipes.place.group.run import run_group
from recipes.place.group.spec import GroupSpec
from recipes.place.group.state import GroupState, ModelState, UnderWay
from recipes.place.group.step_log import Step, StepLog, read_steps

__all__ = [
    "GroupHandle",
    "GroupLost",
    "GroupProcess",
    "GroupSpec",
    "GroupState",
    "Listener",
    "LoadFailed",
    "Loaded",
    "LostReason",
    "ModelState",
    "NotHosted",
    "Replica",
    "StartGroup",
    "Step",
    "StepLog",
    "UnderWay",
    "WorkLost",
    "exec_group",
    "fork_group",
    "read_steps",
    "run_group",
]
