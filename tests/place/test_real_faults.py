"""Real processes of this machine die under a service that is being asked all the time."""

import shutil

import pytest

from blocks.sched.placement import Placement
from recipes.place.front import Launcher
from recipes.place.group import fork_group
from tests.place.faults import (
    break_load,
    busy,
    children,
    kill_groups,
    kill_rank,
    lose_node,
    pid_of,
)
from tests.place.on_loop import on_loop
from tests.place.real_service import group, real_service, save_models
from tests.serve.ranks import is_alive

LOCAL = Launcher(fork_group)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@on_loop
async def test_a_killed_group_is_replaced_and_every_request_is_answered(folders):
    placement = Placement((group((0,), "a", "b"), group((1,), "a", "b")))
    async with (
        real_service(placement, folders, num_devices=2, launcher=LOCAL) as service,
        service.asked() as answers,
    ):
        await kill_groups(service, answers, (0,))
        await kill_groups(service, answers, (1,))
        await kill_groups(service, answers, (0,), (1,))  # nobody is there: requests wait
        pids = [pid_of(one) for one in service.fleet.groups.values()]
    assert all("lost" in text or "killed" in text for text in answers.told), answers.told
    assert not any(map(is_alive, pids)), "the service ends its groups"


@on_loop
async def test_a_killed_rank_of_a_tensor_parallel_group(folders):
    placement = Placement((group((0, 1), "a", tp=2), group((2,), "a", "b")))
    async with (
        real_service(placement, folders, num_devices=3, launcher=LOCAL) as service,
        service.asked() as answers,
    ):
        pid = pid_of(service.live(0, 1))
        await kill_rank(service, answers, (0, 1), lambda: children(pid), [(2,)])


@on_loop
async def test_a_model_that_does_not_load_takes_nothing_with_it(folders, tmp_path):
    own = {name: tmp_path / name for name in folders}
    for name, folder in folders.items():
        shutil.copytree(folder, own[name])
    placement = Placement((group((0,), "a", "b"), group((1,), "a")))
    async with (
        real_service(placement, own, num_devices=2, launcher=LOCAL) as service,
        service.asked() as answers,
    ):
        await break_load(service, answers, (0,), own["b"])


@on_loop
async def test_lost_devices_are_given_to_nobody_until_they_are_back(folders):
    """A node of two devices, which a local launcher can only be told of."""
    lost: list[int] = []
    placement = Placement((group((0,), "a"), group((1,), "b"), group((2,), "a", "b")))
    launcher = Launcher(fork_group, lost_devices=lambda: lost)
    async with (
        real_service(placement, folders, num_devices=3, launcher=launcher) as service,
        service.asked() as answers,
    ):
        await busy(answers)
        pids = [pid_of(service.live(device)) for device in (0, 1)]
        await lose_node(service, answers, (0, 1), lambda: lost.extend((0, 1)), lost.clear)
        assert not any(map(is_alive, pids))
