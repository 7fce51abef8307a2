"""Requests of a group that is lost: made anew elsewhere, or ended with the cause."""

import asyncio

from blocks.sched.placement import Placement
from recipes.place.fleet import Slo
from tests.place.fleet.clusters import group, two
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


@on_loop
async def test_a_request_without_a_token_goes_elsewhere_once():
    world = World(two("c"))
    async with opened(world) as client:
        await world.settled()
        world.hold()
        ask = asyncio.create_task(client.ask("c"))
        first = await world.holder()
        first.kill()
        second = await world.holder()
        second.pace.set()
        text = (await ask).json()["choices"][0]["text"]
        assert text == f"cc@{second.group.name}"
        shown = (await client.get("/metrics")).text
        assert 'blocks_cluster_requests_sent_again_total{model="c"} 1.0' in shown
        assert "blocks_cluster_groups_lost_total 1.0" in shown
        await world.settled()
        assert len(world.alive) == 2  # the lost group was started again


@on_loop
async def test_a_request_that_nobody_has_read_of_is_made_anew_elsewhere():
    world = World(two("c"), slos={"c": Slo(60.0, 60.0)})
    async with opened(world) as client:
        await world.settled()
        world.hold()
        ask = asyncio.create_task(client.ask("c"))
        first = await world.holder()
        first.stop_after = 3
        first.pace.set()
        await world.until(lambda: len(first.seen) == 3)
        first.kill()
        second = await world.holder()
        second.pace.set()
        answer = await ask
        assert answer.status_code == 200
        (before,), (after,) = first.limits, second.limits
        assert 0 < after[0] < before[0] <= 60, "as urgent as before, not refused"
        assert after[1] == before[1] == 60
        assert answer.json()["choices"][0]["text"] == f"cc@{second.group.name}"
        assert answer.json()["usage"]["completion_tokens"] == len(f"cc@{second.group.name}")
        shown = (await client.get("/metrics")).text
        assert 'blocks_cluster_requests_sent_again_total{model="c"} 1.0' in shown
        assert 'blocks_cluster_requests_total{model="c",outcome="served"} 1.0' in shown
        assert 'blocks_cluster_slo_requests_total{met="true",model="c"} 1.0' in shown
        assert world.desk.router.num_live == 0


@on_loop
async def test_a_request_with_tokens_and_nowhere_to_go_is_answered_503_with_the_cause():
    world = World(Placement((group([0], "c"),)), num_devices=1, load_wait_s=0.2)
    async with opened(world) as client:
        await world.settled()
        (handle,) = world.alive
        handle.stop_after = 2
        ask = asyncio.create_task(client.ask("c"))
        await world.until(lambda: len(handle.seen) == 2)
        world.bad_starts = 1000
        handle.kill()
        answer = await ask
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "group_lost")
        assert "it ended" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        shown = (await client.get("/metrics")).text
        assert 'blocks_cluster_requests_total{model="c",outcome="failed"} 1.0' in shown
        assert 'outcome="unavailable"' not in shown


@on_loop
async def test_a_request_whose_second_group_is_lost_too_ends_with_an_error():
    world = World(two("c"))
    async with opened(world) as client:
        await world.settled()
        world.hold()
        ask = asyncio.create_task(client.ask("c"))
        for _ in range(2):
            holder = await world.holder()
            holder.kill()
        answer = await ask
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "group_lost")
        assert world.desk.router.num_live == 0
        shown = (await client.get("/metrics")).text
        assert 'blocks_cluster_requests_total{model="c",outcome="failed"} 1.0' in shown


@on_loop
async def test_a_request_with_tokens_ends_with_an_error_event():
    world = World(two("c"))
    async with opened(world) as client:
        await world.settled()
        body = {"model": "c", "prompt": [7], "max_tokens": 20, "stream": True}
        world.hold()
        ask = asyncio.create_task(client.post("/v1/completions", body))
        holder = await world.holder()
        holder.stop_after = 1
        holder.pace.set()
        await world.until(lambda: holder.seen)
        holder.kill()
        raw = (await ask).text
        assert '"text":"c"' in raw
        assert '"code":"group_lost"' in raw
        assert raw.endswith("data: [DONE]\n\n")
        assert (
            "blocks_cluster_requests_sent_again_total{" not in (await client.get("/metrics")).text
        )
