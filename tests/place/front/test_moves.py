"""Models that move between groups while requests are answered."""

import asyncio

from blocks.sched.placement import Placement
from tests.place.fleet.clusters import group, two
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


@on_loop
async def test_models_move_without_a_moment_in_which_nobody_answers():
    world = World(Placement((group([0], "c"), group([1], "d"))), num_devices=2)
    async with opened(world) as client:
        await world.settled()
        assert (await client.text("c")) + (await client.text("d")) == "cc@g0dd@g1"
        world.gaps.clear()
        world.fleet.desired = Placement((group([0], "d"), group([1], "c")))
        world.keeper.wake()
        await world.settled()
        assert world.gaps
        assert all(counts["c"] and counts["d"] for counts in world.gaps)


@on_loop
async def test_what_a_replica_has_is_answered_before_it_goes():
    world = World(two("c"))
    async with opened(world) as client:
        await world.settled()
        first = world.alive[0]
        first.pace.clear()
        ask = asyncio.create_task(client.ask("c"))
        await world.until(lambda: first.streams)
        world.fleet.desired = Placement((group([0]), group([1], "c")))
        world.keeper.wake()
        await world.until(lambda: "c" not in first.models)
        assert (await client.text("c")) == "cc@g1"
        first.pace.set()
        assert (await ask).json()["choices"][0]["text"] == "cc@g0"
        await world.settled()
