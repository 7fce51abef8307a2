"""Who runs next: one token-budget loop over requests, on top of anybody's block allocator.

Pure Python: no torch, no threads, no clock of its own. The seeded simulator lives in
``blocks.sched.simulate`` and is not imported here.
"""

from blocks.sched.admission import QueueFull, Unservable
from blocks.sched.allocator import Allocator
from blocks.sched.batch import Batch, Entry, Output
from blocks.sched.counters import Counters
from blocks.sched.policy import Policy, aged_priority, fcfs, priority
from blocks.sched.request import FinishReason, Request, Sequence, State
from blocks.sched.scheduler import Scheduler

__all__ = [
    "Allocator",
    "Batch",
    "Counters",
    "Entry",
    "FinishReason",
    "Output",
    "Policy",
    "QueueFull",
    "Request",
    "Scheduler",
    "Sequence",
    "State",
    "Unservable",
    "aged_priority",
    "fcfs",
    "priority",
]
