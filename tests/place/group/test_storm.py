"""Groups die at random under traffic: every request is answered, and nothing is left."""

import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from recipes.place.group import GroupSpec, Listener, Replica, fork_group
from tests.place.group.groups import SMALL, save_models
from tests.place.group.storm import pid_of, run_storm
from tests.place.group.test_faults import descendants
from tests.place.on_loop import eventually, on_loop
from tests.serve.ranks import is_alive


@pytest.mark.parametrize(
    ("seed", "num_faults", "pp"),
    [
        (0, 3, 1),
        *(pytest.param(seed, 12, 1, marks=pytest.mark.nightly) for seed in range(1, 5)),
        *(pytest.param(seed, 6, 2, marks=pytest.mark.nightly) for seed in range(2)),
    ],
)
@on_loop
async def test_every_request_of_a_storm_is_answered_once(tmp_path, seed, num_faults, pp):
    storm = await run_storm(save_models(tmp_path, 0)[0], seed, num_faults, pp)
    assert set(storm.ended.values()) <= {"length", "stop", "error", "cancelled"}
    answered = sum(how in ("length", "stop") for how in storm.ended.values())
    assert answered >= num_faults, "those of the groups that nothing happens to"


@on_loop
async def test_a_front_door_that_is_killed_takes_its_groups_along(tmp_path):
    (folder,) = save_models(tmp_path, 0)
    told = tmp_path / "told"
    temporary = tempfile.mkdtemp(prefix="door-")  # a short path, for sockets

    async def front_door() -> None:
        listener = await Listener.open()
        pids = []
        for group in ("a", "b"):
            spec = GroupSpec(group=group, tp=2, devices=(0, 1), **SMALL)
            handle = listener.start(spec, fork_group)
            await handle.ready()
            await handle.load(Replica("m", str(folder), 512))
            pids += [pid_of(handle), *descendants(pid_of(handle))]
        told.with_suffix(".new").write_text(" ".join(map(str, pids)))
        told.with_suffix(".new").rename(told)
        await asyncio.sleep(600)

    pid = os.fork()
    if pid == 0:
        try:
            tempfile.tempdir = temporary
            asyncio.run(front_door())
        finally:
            os._exit(1)
    pids: list[int] = []
    try:
        await eventually(told.exists)
        pids = [int(word) for word in told.read_text().split()]
        assert len(pids) == 6
        assert all(map(is_alive, pids))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    await eventually(lambda: not any(map(is_alive, pids)))
    left = [path.name for path in Path(temporary).iterdir()]
    shutil.rmtree(temporary)
    assert not [name for name in left if not name.startswith("blocks-place-")]
