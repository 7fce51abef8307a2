"""``check_here``: whether the devices of a plan can all be on this machine. No torch."""

import os

from blocks._checks import check
from blocks.pipeline.view.scale import bytes_text
from recipes.plan.parallel_plan import ParallelPlan

DEVICES_PER_CORE = 16
"""More threads or processes than that only wait for one another."""


def check_here(
    plan: ParallelPlan, *, cores: int | None = None, memory_bytes: int | None = None
) -> None:
    """
    Args:
        cores, memory_bytes: default: those of this machine.

    Raises:
        ValueError: more devices, or more bytes on all of them together, than the machine has room
            for.
    """
    cores = cores or os.cpu_count() or 1
    if memory_bytes is None:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hint = "plan for fewer devices, or start it on several machines with torchrun"
    most = DEVICES_PER_CORE * cores
    expected = f"at most {most} on the {cores} cores of this machine"
    check(plan.num_devices <= most, "devices of the plan", expected, plan.num_devices, hint)
    needed = sum(stage.predicted.peak_bytes * stage.mesh.num_ranks for stage in plan.stages)
    expected = (
        f"at most {bytes_text(float(memory_bytes))}, this machine's memory, on all devices together"
    )
    check(needed <= memory_bytes, "memory of the plan", expected, bytes_text(needed), hint)
