"""Clients that leave before their answer."""

import asyncio
import dataclasses

from blocks.sched.placement import Placement
from recipes.serve.job import Job
from recipes.serve.sampling_params import SamplingParams
from tests.place.fleet.clusters import group, two
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


@on_loop
async def test_a_client_that_leaves_is_forgotten():
    world = World(two("c"))
    async with opened(world) as client:
        await world.settled()
        world.hold()
        engine = world.lobby.of("c", {}).engine
        stream = await engine.submit([Job(engine.new_id(), [1, 2], SamplingParams(n=1))])
        assert engine.num_in_flight == 1
        stream.cancel("client_left")
        assert engine.num_in_flight == 0
        assert not any(handle.streams for handle in world.alive)
        world.desk.check_invariants()
        shown = (await client.get("/metrics")).text
        assert 'requests_cancelled_total{cause="client_left",model="c"} 1.0' in shown


@on_loop
async def test_a_client_that_leaves_while_its_request_is_sent_again_counts_once():
    world = World(Placement((group([0], "c"),)), num_devices=1, load_wait_s=60.0)
    async with opened(world) as client:
        await world.settled()
        world.hold()
        engine = world.lobby.of("c", {}).engine
        stream = await engine.submit([Job(engine.new_id(), [1, 2], SamplingParams(n=1))])
        world.bad_starts = 1000
        world.alive[0].kill()
        again = list(engine._again)  # type: ignore[attr-defined]
        stream.cancel("client_left")
        async with asyncio.timeout(20.0):  # less than it would wait for a group
            await asyncio.gather(*again)
        shown = (await client.get("/metrics")).text
        assert 'requests_total{model="c",outcome="cancelled"} 1.0' in shown
        assert 'outcome="failed"' not in shown
        world.desk.check_invariants()


@on_loop
async def test_a_client_that_leaves_while_its_model_loads_is_not_waited_for():
    world = World(Placement((group([0], "a"),)), num_devices=1, load_wait_s=60.0)
    async with opened(world) as client:
        await world.settled()
        world.loading.clear()
        for streaming in (False, True):
            left = dataclasses.replace(client, left=asyncio.Event())
            body = {"model": "c", "prompt": [7], "max_tokens": 20, "stream": streaming}
            asked = asyncio.create_task(left.post("/v1/completions", body))
            await world.until(lambda: "c" in world.fleet.desired.groups[0].models)
            left.left.set()
            async with asyncio.timeout(5.0):  # less than the model takes
                assert (await asked).status_code == 499
        shown = (await client.get("/metrics")).text
        assert 'requests_cancelled_total{cause="client_left",model="c"} 2.0' in shown
        assert 'requests_total{model="c",outcome="cancelled"} 2.0' in shown
        world.loading.set()
        assert (await client.text("c")).startswith("cc")
        assert world.desk.router.num_live == 0
        world.desk.check_invariants()
