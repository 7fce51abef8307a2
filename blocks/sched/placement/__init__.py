"""Which devices form groups, in which parallel configuration, hosting which models: plain data.

Needs neither torch nor numpy.
"""

from blocks.sched.placement.group import Group
from blocks.sched.placement.placement import Placement
from blocks.sched.placement.problem import Problem, group_bytes

__all__ = ["Group", "Placement", "Problem", "group_bytes"]
