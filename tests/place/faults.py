"""Faults of a service that is being asked all the time, and what must come of each: nobody is left
without an answer, and what is gone is replaced in two rounds of the keeper at most.
"""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blocks.sched.placement import Placement
from recipes.place.fleet import LiveGroup
from recipes.place.ray import RayGroup
from tests.place.on_loop import eventually
from tests.place.real_service import Answers, RealService, group
from tests.serve.ranks import is_alive

MODELS = ("a", "b")


def pid_of(live: LiveGroup) -> int:
    """Of a group's process."""
    process: Any = live.handle.process
    return process.pid() if isinstance(process, RayGroup) else process.pid


def children(pid: int) -> list[int]:
    """Processes that a process has started and that run."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        own = [int(word) for word in file.read().split()]
    return [child for child in own if is_alive(child)]


async def busy(answers: Answers) -> None:
    """Wait until both models have answered some more."""
    at = answers.right.copy()
    await eventually(lambda: all(answers.right[model] > at[model] + 3 for model in MODELS))


async def recovers(service: RealService, answers: Answers, before: int) -> None:
    """Within two rounds after the first ``before``, and then both models answer."""
    await eventually(service.is_whole)
    assert len(service.rounds) - before <= 2, service.rounds[before:]
    service.fleet.check_invariants()
    await busy(answers)


async def kill_groups(service: RealService, answers: Answers, *groups: Sequence[int]) -> None:
    """The processes of some groups, all at once."""
    await busy(answers)
    before, old = len(service.rounds), [service.live(*devices) for devices in groups]
    lost = service.fleet.counts["lost_groups"]
    pids = [pid_of(one) for one in old]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: service.fleet.counts["lost_groups"] == lost + len(old))
    await recovers(service, answers, before)
    assert not any(map(is_alive, pids))


async def kill_rank(
    service: RealService,
    answers: Answers,
    devices: Sequence[int],
    ranks: Callable[[], list[int]],
    others: Sequence[Sequence[int]],
) -> None:
    """One of the two ranks of a group, which starts them anew by itself: the keeper has nothing
    to do. Then it must answer without the ``others``, too.
    """
    await busy(answers)
    before, old = len(service.rounds), service.live(*devices)
    (first, second) = ranks()
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: not is_alive(first))
    await recovers(service, answers, before)
    await eventually(lambda: len(ranks()) == 2 and not {first, second} & set(ranks()))
    assert service.live(*devices) is old
    assert len(service.rounds) == before
    mine = Answers()
    for other in others:
        service.fleet.router.shut(tuple(other), "a")
    for prompt in range(4):
        await service.ask(mine, "a", prompt, stream=False)
    assert mine.right["a"] == 4, (mine.told, mine.wrong)


async def break_load(
    service: RealService, answers: Answers, devices: Sequence[int], folder: Path
) -> None:
    """The weights of ``b`` are cut short while its only group is lost, and mended afterwards."""
    await busy(answers)
    (weights,) = folder.glob("*.safetensors")
    kept = weights.read_bytes()
    failed = service.fleet.counts["failed_loads"]
    weights.write_bytes(kept[: len(kept) // 2])
    try:
        os.kill(pid_of(service.live(*devices)), signal.SIGKILL)
        await eventually(lambda: service.fleet.counts["failed_loads"] >= failed + 2)
        right = answers.right["a"]
        await eventually(lambda: answers.right["a"] > right + 5)
        assert "a" in service.live(*devices).replicas, "the group itself serves what does load"
    finally:
        weights.write_bytes(kept)
    before = len(service.rounds)
    await recovers(service, answers, before)


async def lose_node(
    service: RealService,
    answers: Answers,
    devices: Sequence[int],
    go: Callable[[], object],
    back: Callable[[], object],
) -> None:
    """Devices go with their node: nobody gets them until they are back."""
    await busy(answers)
    placement: Placement = service.fleet.desired
    before = len(service.rounds)
    go()
    await eventually(lambda: service.fleet.lost == set(devices))
    await eventually(lambda: service.is_whole() or len(service.rounds) - before > 2)
    await recovers(service, answers, before)
    used = {device for group in service.fleet.desired.groups for device in group.devices}
    assert not used & set(devices)
    back()
    await eventually(lambda: not service.fleet.lost)
    service.fleet.desired = placement
    before = len(service.rounds)
    service.keeper.wake()
    await recovers(service, answers, before)


NUM_FAULTS = 5


async def every_fault(
    service: RealService,
    answers: Answers,
    pair: Sequence[int],
    alone: Sequence[int],
    folder: Path,
    *,
    go: Callable[[], object],
    back: Callable[[], object],
    ranks: Callable[[], list[int]],
) -> None:
    """All of them, one after another, on ``layout(pair, alone)``; ``NUM_FAULTS`` in all.

    Args:
        folder: of ``b``, which may be damaged.
        go, back: take the node of ``pair`` away, and give another.
        ranks: processes that are ranks.
    """
    faults = (
        lambda: kill_groups(service, answers, alone),
        lambda: kill_groups(service, answers, pair, alone),
        lambda: break_load(service, answers, alone, folder),
        lambda: lose_node(service, answers, pair, go, back),
        lambda: kill_rank(service, answers, pair, ranks, [alone]),
    )
    assert len(faults) == NUM_FAULTS
    for fault in faults:
        await fault()
        answers.survived += 1


def layout(pair: Sequence[int], alone: Sequence[int]) -> Placement:
    """``a`` on two ranks, and both models on one."""
    return Placement((group(pair, "a", tp=2), group(alone, "a", "b")))
