"""Plans that this machine has no room for are refused before anything starts."""

import dataclasses

import pytest

from blocks._checks import check
from recipes.plan.execute import run_plan as module
from recipes.plan.execute.run_plan import run_plan
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.this_machine import DEVICES_PER_CORE, check_here
from tests.plan.plans import drawn_plan

PLENTY = 2**80


@pytest.mark.parametrize("seed", range(12))
def test_as_many_devices_and_bytes_as_there_is_room_for(seed: int) -> None:
    plan = drawn_plan(seed)
    cores = -(-plan.num_devices // DEVICES_PER_CORE)
    needed = sum(stage.mesh.num_ranks * stage.predicted.peak_bytes for stage in plan.stages)
    check_here(plan, cores=cores, memory_bytes=int(needed) + 1)
    with pytest.raises(ValueError, match="memory of the plan: expected at most"):
        check_here(plan, cores=cores, memory_bytes=int(needed * 0.99))
    many = _twice_until(plan, DEVICES_PER_CORE)
    with pytest.raises(ValueError, match="devices of the plan: expected at most 16 on the 1 cores"):
        check_here(many, cores=1, memory_bytes=PLENTY)


def _twice_until(plan: ParallelPlan, most: int) -> ParallelPlan:
    """The last stage on more devices than there is room for."""
    *stages, last = plan.stages
    first = last.mesh.ranks[0]
    mesh = dataclasses.replace(
        last.mesh, sizes=(most + 1, 1), ranks=tuple(range(first, first + most + 1))
    )
    cluster = dataclasses.replace(plan.cluster, size=first + most + 1)
    stages = (*stages, dataclasses.replace(last, mesh=mesh))
    return dataclasses.replace(plan, stages=stages, cluster=cluster)


@pytest.mark.parametrize(("how", "words"), [("threads", "no room"), ("torchrun", "processes")])
def test_it_is_looked_at_before_the_model_is(how, words, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(plan: ParallelPlan) -> None:
        check(False, "room", "some", "no room")

    plan = drawn_plan(3)
    monkeypatch.setattr(module, "check_here", full)
    monkeypatch.setattr(module, "call_of", lambda *_, **__: pytest.fail("the model was made"))
    monkeypatch.setenv("WORLD_SIZE", str(plan.num_devices - 1))
    with pytest.raises(ValueError, match=words):
        run_plan(plan, how=how)
