"""Groups and devices that are lost, replaced, tried again and given up."""

import asyncio

from blocks.sched.placement import Placement
from tests.place.fleet.clusters import group
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


@on_loop
async def test_the_only_group_comes_back_and_the_request_is_served_there():
    world = World(Placement((group([0], "c"),)), num_devices=1)
    async with opened(world) as client:
        await world.settled()
        (handle,) = world.alive
        handle.pace.clear()
        ask = asyncio.create_task(client.ask("c"))
        await world.until(lambda: handle.streams)
        handle.kill()
        assert (await ask).json()["choices"][0]["text"] == "cc@g1"


@on_loop
async def test_devices_of_a_lost_node_are_replaced_and_come_back():
    world = World(Placement((group([0, 1], "a"), group([2], "c"))), num_devices=4)
    async with opened(world) as client:
        await world.settled()
        world.lost_devices = {1}
        await world.until(lambda: 1 in world.fleet.lost)
        assert (await client.text("a")).startswith("aa")
        await world.settled()
        assert all(1 not in g.devices for g in world.fleet.desired.groups)
        world.lost_devices = set()
        await world.until(lambda: not world.fleet.lost)


@on_loop
async def test_a_group_that_does_not_start_is_tried_again_and_then_given_up():
    world = World(Placement((group([0], "c"),)), num_devices=2)
    world.bad_starts = 3
    async with opened(world) as client:
        assert (await client.text("c")).startswith("cc")
        await world.settled()
        assert world.fleet.unusable(world.keeper.clock()) == {0}
        assert [g.devices for g in world.fleet.desired.groups if g.models] == [(1,)]
