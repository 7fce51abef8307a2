"""Drive a scheduler and an allocator with a seeded workload and seeded faults, and check them.

python -m blocks.sched.simulate --seed 1 --steps 100000

The model is a hash: the keys and values of a position are a number made of the tokens up to it,
kept in a simulated memory at the slot the allocator gave; a drawn token is a number made of the
keys and values *read back*. So a block shared wrongly, freed early, copied late or found too soon
shows as a wrong number, and every finished request is compared with the same one computed alone.

Faults: cancels and stops at any moment, failed steps that leave garbage behind, lost, late and
duplicate completions, requests that break every step they are in, allocator shortage, clock jumps.
After the faults comes a liveness phase: everything must finish within a proven number of steps and
every block must come back. Same seed and code, same digest of all events.
"""

from blocks.sched.simulate.memory import AllocatorFactory, PagedAllocator
from blocks.sched.simulate.options import Options
from blocks.sched.simulate.simulation import Simulation, Summary, simulate

__all__ = [
    "AllocatorFactory",
    "Options",
    "PagedAllocator",
    "Simulation",
    "Summary",
    "simulate",
]
