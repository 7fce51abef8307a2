"""Requests before the groups that host their models."""

import asyncio

from blocks.sched.placement import Placement
from tests.place.fleet.clusters import group, two
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


@on_loop
async def test_models_are_listed_and_answer_under_their_names():
    world = World(Placement((group([0], "c", "d"), group([1], "b"))))
    async with opened(world) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [one["id"] for one in listed] == ["a", "b", "c", "d"]
        assert (await client.get("/v1/models/b")).json()["id"] == "b"
        for model in ("b", "c", "d"):
            assert (await client.text(model)).startswith(model + model)
        missing = await client.ask("nobody")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        unnamed = await client.ask(None)
        assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (400, "model")
        chat = {"model": "c", "messages": [{"role": "user", "content": "hi"}]}
        told = (await client.post("/v1/chat/completions", chat)).json()
        assert told["choices"][0]["message"]["content"].startswith("cc")
        assert (await client.post("/tokenize", {"model": "b", "prompt": "x"})).status_code == 200
        assert (await client.get("/ready")).json()["status"] == "ready"


@on_loop
async def test_a_request_goes_to_the_shortest_queue():
    world = World(two("c"))
    async with opened(world) as client:
        await world.settled()
        world.hold()
        asks = []
        for _ in range(4):
            asks.append(asyncio.create_task(client.ask("c", 40)))
            await world.until(lambda: len(asks) == sum(len(h.streams) for h in world.alive))
        assert [len(handle.streams) for handle in world.alive] == [2, 2]
        for handle in world.alive:
            handle.pace.set()
        assert {(await ask).status_code for ask in asks} == {200}
        await world.until(lambda: world.desk.router.num_live == 0)
