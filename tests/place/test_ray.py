"""Groups on a real Ray of three nodes: the same answers, and what is lost comes to light.

Nightly: a Ray costs 6 s of processor time, and every process of a model 3 more.
"""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from recipes.model import save_model
from recipes.place.front import Launcher
from recipes.place.group import GroupHandle, GroupSpec, Listener, LoadFailed, LostReason, Replica
from recipes.place.group.faults import how_it_ended
from recipes.place.ray import RayCluster, RayGroup, bundles_of
from recipes.place.ray.group import reserve
from recipes.place.ray.library import ray_library
from recipes.place.ray.ranks import SHARE
from recipes.serve.parallel.start import UNKNOWN
from tests.place.faults import NUM_FAULTS, every_fault, layout
from tests.place.group.groups import SMALL, ask, collect, first_delta, running_group
from tests.place.group.test_group import varied
from tests.place.on_loop import eventually
from tests.place.ray_nodes import processes, ray_nodes
from tests.place.real_service import real_service, save_models
from tests.serve.models import tiny_decoder, tiny_engine, tiny_tokenizer
from tests.serve.test_engine import job, run

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
LIMIT_S = 600.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model(tiny_decoder(), path, tiny_tokenizer())
    return path


@pytest.fixture(scope="module")
def nodes():
    with ray_nodes(2, 1) as found:
        yield found


def tokens(outputs) -> list[list[list[int]]]:
    """Of every sample: scores of two ranks may differ from those of one in their last bits."""
    return [[sample.token_ids for sample in output.completions] for output in outputs]


def process_of(handle: GroupHandle) -> RayGroup:
    process: Any = handle.process
    return process


def by_size(cluster):
    """Nodes with their devices, the one with two devices first."""
    found = sorted(cluster.nodes().items(), key=lambda one: -len(one[1]))
    assert [len(devices) for _, devices in found] == [2, 1]
    assert sorted(device for _, devices in found for device in devices) == [0, 1, 2]
    assert all(cluster.node_of(device) == node for node, devices in found for device in devices)
    return found


def on_ray(test):
    """A test that is a coroutine; the cluster is left again behind it."""
    import asyncio
    import functools

    @functools.wraps(test)
    def run_it(nodes, folder):
        async def limited(cluster):
            async with asyncio.timeout(LIMIT_S):
                await test(nodes, cluster, folder)

        with RayCluster(nodes.address, num_devices=3) as cluster:
            asyncio.run(limited(cluster))
        assert not processes("ray::GroupActor")
        assert not processes("ray::RankActor")

    del run_it.__wrapped__  # pytest reads the arguments there
    return run_it


@on_ray
async def test_ranks_on_one_node_answer_as_the_engine_in_this_process(nodes, cluster, folder):
    assert cluster.host is None, "all on loopback: groups call over a Unix socket"
    (_, pair), _ = by_size(cluster)
    expected = tokens(run(tiny_engine(tiny_decoder()), *varied("r")))
    async with running_group(folder, start=cluster.start_group, tp=2, devices=pair) as handle:
        assert tokens(await ask(handle, "tiny", *varied("r"))) == expected
        with pytest.raises(LoadFailed, match="no-such-folder"):
            await handle.load(Replica("other", str(folder / "no-such-folder"), 256))
        assert "model tiny" in process_of(handle).log()
        assert handle.spec.key not in process_of(handle).log(10_000)
        for path in (nodes.folder / "ray").rglob("*"):
            if path.is_file() and path.suffix in (".log", ".out", ".err", ".txt", ".json"):
                assert handle.spec.key not in path.read_text(errors="replace"), path
        # a rank alone
        stream = await handle.submit("tiny", [job("long", [5, 6], max_tokens=200, ignore_eos=True)])
        await first_delta(stream)
        os.kill(processes("ray::RankActor")[-1], signal.SIGKILL)
        (lost,) = (await collect(stream)).values()
        assert lost.completions[0].finish_reason == "error"
        assert "is gone, its process or its machine" in (lost.completions[0].error or "")
        assert tokens(await ask(handle, "tiny", *varied("r"))) == expected, "new ranks answer"
        # the group itself
        stream = await handle.submit("tiny", [job("last", [5, 6], max_tokens=200, ignore_eos=True)])
        await first_delta(stream)
        os.kill(process_of(handle).pid(), signal.SIGKILL)
        reason = await handle.wait_lost()
        assert reason == LostReason("ended", how_it_ended(UNKNOWN))
        assert "Worker" in process_of(handle).why
        (lost,) = (await collect(stream)).values()
        assert lost.completions[0].finish_reason == "error"
        await eventually(lambda: not processes("ray::RankActor"))
        # its devices are free again, and its log is still there
        async with running_group(folder, start=cluster.start_group, devices=pair[1:]) as again:
            assert tokens(await ask(again, "tiny", *varied("r"))) == expected
            assert "model tiny" in process_of(handle).log()


@on_ray
async def test_a_group_over_two_nodes_and_the_loss_of_one(nodes, cluster, folder):
    expected = tokens(run(tiny_engine(tiny_decoder()), *varied("r")))
    lost_devices: list[tuple[int, ...]] = []
    cluster.on_lost = lost_devices.append
    (first, pair), (_, alone) = by_size(cluster)
    both = (*alone, pair[1])
    async with running_group(folder, start=cluster.start_group, tp=2, devices=both) as handle:
        assert tokens(await ask(handle, "tiny", *varied("r"))) == expected
        stream = await handle.submit("tiny", [job("long", [5, 6], max_tokens=200, ignore_eos=True)])
        await first_delta(stream)
        nodes.remove(first)
        began = time.monotonic()
        reason = await handle.wait_lost()
        assert (reason.kind, time.monotonic() - began < 30) == ("ended", True)
        (lost,) = (await collect(stream)).values()
        assert lost.completions[0].finish_reason == "error"
        await eventually(lambda: cluster.lost_devices == pair)
        assert lost_devices == [pair]
        assert list(cluster.nodes().values()) == [alone]
        assert cluster.node_of(pair[0]) == "lost"
        await eventually(lambda: not processes("ray::RankActor"))
    # what lies on lost devices cannot start, and says so at once
    listener = await Listener.open(cluster.host)
    try:
        nowhere = listener.start(
            GroupSpec(group="n", devices=pair[1:], **SMALL), cluster.start_group
        )
        assert (await nowhere.wait_lost()).kind == "not_started"
        assert f"[{pair[1]}], which do not" in process_of(nowhere).why
    finally:
        await listener.close()
    # what lies on the node that is left goes on; a new node takes the numbers of the lost one
    async with running_group(folder, start=cluster.start_group, devices=alone) as there:
        assert tokens(await ask(there, "tiny", *varied("r"))) == expected
        added = nodes.add(2)
        await eventually(lambda: cluster.lost_devices == ())
        assert cluster.nodes()[added] == pair
    async with running_group(folder, start=cluster.start_group, pp=2, devices=pair) as handle:
        assert tokens(await ask(handle, "tiny", *varied("r"))) == expected


@on_ray
async def test_a_service_on_ray_answers_through_every_fault(nodes, cluster, folder):
    """A group's process, one rank of two, a load, a whole node: the same as on one machine."""
    folders = save_models(folder.parent / "served")
    (first, pair), (_, alone) = by_size(cluster)
    launcher = Launcher(cluster.start_group, cluster.host, lambda: cluster.lost_devices)
    places = layout(pair, alone)
    async with (
        real_service(places, folders, num_devices=3, launcher=launcher) as service,
        service.asked() as answers,
    ):
        await every_fault(
            service,
            answers,
            pair,
            alone,
            folders["b"],
            go=lambda: nodes.remove(first),
            back=lambda: nodes.add(2),
            ranks=lambda: processes("ray::RankActor"),
        )
    assert answers.survived == NUM_FAULTS
    assert answers.right["a"] > 20
    assert answers.right["b"] > 20


class Shown:
    """What Ray shows a process of a bundle."""

    def gpus(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_every_rank_is_shown_the_gpu_of_its_bundle_alone(nodes):
    """Ray counts the GPUs it was told of; none is touched."""
    node = nodes.add(2, num_gpus=2)
    try:
        with RayCluster(nodes.address, num_devices=2, device="cuda") as cluster:
            assert cluster.nodes() == {node: (0, 1)}
            ray = ray_library()
            bundles = bundles_of((1, 0), cluster.seats, device="cuda")
            reserved = reserve(bundles)
            strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
            shown = []
            for rank in (0, 1, 0):  # a process of the first bundle's group, or of a second model
                actor = ray.remote(Shown).options(
                    num_cpus=0, num_gpus=SHARE, scheduling_strategy=strategy(reserved, rank)
                )
                shown.append(actor.remote())
            first, second, again = ray.get([actor.gpus.remote() for actor in shown])
            assert {first, second} == {"0", "1"}
            assert again == first
    finally:
        nodes.remove(node)


def test_a_ray_that_is_started_here_listens_on_loopback_alone(folder):
    """In a process of its own: which addresses Ray listens on is settled when it is imported."""
    import subprocess
    import sys

    code = """
import asyncio, logging, os, psutil, sys
from recipes.place.group.faults import how_it_ended
from recipes.place.ray import RayCluster, RayGroup, bundles_of
from recipes.place.ray.group import reserve
from recipes.place.ray.library import ray_library
from recipes.place.ray.ranks import SHARE
from recipes.serve.parallel.start import UNKNOWN
from tests.place.faults import NUM_FAULTS, every_fault, layout
from tests.place.group.groups import ask, running_group
from tests.serve.test_engine import job
from pathlib import Path

async def main(cluster):
    async with running_group(Path(sys.argv[1]), start=cluster.start_group, devices=(0,)) as handle:
        (answer,) = await ask(handle, "tiny", job("a", [5, 6, 7], max_tokens=6))
        print("tokens", answer.completions[0].token_ids, flush=True)

with RayCluster(num_devices=1) as cluster:
    assert list(cluster.nodes().values()) == [(0,)]
    asyncio.run(main(cluster))
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            places = process.net_connections("tcp")
        except psutil.NoSuchProcess:  # a worker that was ending
            continue
        for place in places:
            if place.status == psutil.CONN_LISTEN:
                assert place.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1"), (process, place)
                print("port", place.laddr.port)
    import ray
    from ray._raylet import AuthenticationMode, get_authentication_mode
    assert get_authentication_mode() == AuthenticationMode.TOKEN
"""
    root = Path(__file__).parents[2]
    short = tempfile.mkdtemp(prefix="rs-", dir="/tmp")  # where Ray makes its folder
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=root,
        env={**environment, "HOME": str(folder.parent), "TMPDIR": short, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = run(tiny_engine(tiny_decoder()), job("a", [5, 6, 7], max_tokens=6))
    assert f"tokens {expected[0].completions[0].token_ids}" in done.stdout
    assert done.stdout.count("port") >= 2
    assert not (folder.parent / ".ray").exists(), "no token is left behind"
    assert not list(Path(short).glob("blocks-ray-*"))
    shutil.rmtree(short)
