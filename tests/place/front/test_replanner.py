"""Placements that are searched anew as traffic changes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from blocks.sched.placement import Group, Placement
from recipes.place.fleet import replanner
from tests.place.fleet.clusters import SHAPES, group, two
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


@on_loop
async def test_traffic_that_drifts_changes_the_placement():
    """Planned for d alone; then everybody asks for c, which the second device could serve."""
    placement = Placement((Group((0,), SHAPES[0], ("c",), (60,)), group([1], "d")))
    quick = {"least_gain": 0.01, "simulations": 3}
    world = World(placement, num_devices=2, models=("c", "d"), api_key="k", **quick)
    async with opened(world, "k") as client:
        await world.settled()
        limits = {"x-slo-ttft-ms": "150", "x-slo-tpot-ms": "100"}
        answers = await asyncio.gather(*(client.ask("c", 60, **limits) for _ in range(14)))
        assert {answer.status_code for answer in answers} == {200, 429}
        told = (await client.post("/admin/replan", {})).json()
        assert told["changed"]
        assert told["go"] > told["stay"]
        assert world.fleet.desired != placement
        await world.settled()
        assert (await client.text("c")).startswith("cc")
        assert "placement_changes_total 1.0" in (await client.get("/metrics")).text


@on_loop
async def test_a_search_that_is_wanted_waits_for_traffic_to_go_by():
    world = World(two("c"), num_devices=2)
    async with opened(world) as client:
        await world.settled()
        world.fleet.wants_search = True
        assert await world.replanner.look() is None
        assert world.fleet.wants_search
        for _ in range(10):
            await client.text("c")
        assert await world.replanner.look() is not None
        assert not world.fleet.wants_search


@on_loop
async def test_searches_go_on_after_the_process_of_one_was_killed(monkeypatch):
    class Killed(ThreadPoolExecutor):
        def submit(self, *_, **__):
            raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(replanner, "_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(replanner, "LOOK_S", 0.01)
    world = World(two("c"), num_devices=2)
    async with opened(world) as client:
        await world.settled()
        for _ in range(10):
            await client.text("c")
        world.replanner._executor = Killed()
        with pytest.raises(BrokenProcessPool):
            await world.replanner.look()
        assert await world.replanner.look() is not None
        world.replanner._executor = Killed()
        world.fleet.wants_search = True  # and by no timer: it must not be forgotten
        await world.until(lambda: not isinstance(world.replanner._executor, Killed | None))
        await world.until(lambda: not world.fleet.wants_search)
