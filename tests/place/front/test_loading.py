"""Models that are loaded on demand, and what groups are told of them."""

import asyncio
import dataclasses

from blocks.sched.placement import Placement
from tests.place.fleet.clusters import PROFILES, group, two
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


@on_loop
async def test_a_model_that_is_nowhere_is_loaded_and_the_request_waits():
    world = World(Placement((group([0], "a"),)), num_devices=1)
    async with opened(world) as client:
        await world.settled()
        assert (await client.text("a")).startswith("aa")
        assert (await client.text("c")).startswith("cc")  # there is no room beside a, which is idle
        assert not world.hosting("a")
        await world.settled()
        assert (await client.text("a")).startswith("aa")


@on_loop
async def test_who_would_wait_too_long_for_a_model_to_make_room_is_refused_and_others_wait():
    one = Placement((group([0], "a"),))
    world = World(one, num_devices=1, least_stay_s=1.0)
    async with opened(world) as client:
        await world.settled()
        began = world.keeper.clock()
        refused = await client.ask("c", 5, **{"x-slo-ttft-ms": "100"})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "model_not_loaded")
        assert 0.1 < error["predicted_ttft_s"] <= 1.0
        assert int(refused.headers["retry-after"]) == 1
        assert (await client.text("a")).startswith("aa")
        assert (await client.text("c")).startswith("cc")
        assert world.keeper.clock() - began > 0.5
        shown = (await client.get("/metrics")).text
        assert 'blocks_cluster_requests_total{model="c",outcome="refused"} 1.0' in shown
    world = World(one, num_devices=1, least_stay_s=60.0, load_wait_s=5.0)
    async with opened(world) as client:
        await world.settled()
        refused = await client.ask("c")
        assert refused.status_code == 429
        assert 50 < int(refused.headers["retry-after"]) <= 60


@on_loop
async def test_where_everything_is_busy_a_waiting_request_is_answered_503():
    world = World(Placement((group([0], "a"),)), num_devices=1, load_wait_s=0.2)
    async with opened(world) as client:
        await world.settled()
        (handle,) = world.alive
        handle.pace.clear()
        busy = asyncio.create_task(client.ask("a"))
        await world.until(lambda: handle.streams)
        refused = await client.ask("c")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "no device has room" in refused.json()["error"]["message"]
        handle.pace.set()
        assert (await busy).status_code == 200
        assert (await client.text("c")).startswith("cc")
        shown = (await client.get("/metrics")).text
        assert 'blocks_cluster_requests_total{model="c",outcome="unavailable"} 1.0' in shown


@on_loop
async def test_a_model_that_cannot_be_loaded_says_why_and_others_go_on(caplog):
    caplog.set_level("INFO", "recipes.place")
    world = World(two("d"), load_wait_s=60.0)  # nobody waits so long for what is broken
    world.bad_models = {"c"}
    async with opened(world) as client:
        refused = await client.ask("c")
        assert refused.status_code == 503
        assert "c is broken" in refused.json()["error"]["message"]
        assert (await client.text("d")).startswith("dd")
        world.bad_models = set()
        await world.until(lambda: world.hosting("c"))  # it is tried again by itself
        assert (await client.text("c")).startswith("cc")
    log = [(one.levelname, one.getMessage()) for one in caplog.records]
    assert any(kind == "WARNING" and "c cannot be loaded" in text for kind, text in log)
    assert any(kind == "INFO" and text.startswith("c is loaded on group") for kind, text in log)


@on_loop
async def test_groups_are_told_what_steps_need_beside_weights_and_cache():
    world = World(Placement((group([0], "c"), group([1, 2], "a"))))
    timings = tuple(dataclasses.replace(t, activation_bytes=40) for t in PROFILES["a"].timings)
    profile = dataclasses.replace(PROFILES["a"], timings=timings)
    world.fleet.capacity.profiles = {**PROFILES, "a": profile}
    async with opened(world):
        await world.settled()
        told = {r.model: (r.kv_tokens, r.activation_bytes)
                for handle in world.alive for r in handle.replicas}  # fmt: skip
        assert told == {"c": (50, 0), "a": (50, 40)}
