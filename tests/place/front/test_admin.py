"""Routes of operators: load, unload, replan, and who may."""

from blocks.sched.placement import Placement
from tests.place.fleet.clusters import group
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


@on_loop
async def test_admin_routes_need_a_key():
    world = World(Placement((group([0], "c"),)))
    async with opened(world) as client:
        for path in ("load", "unload", "replan"):
            refused = await client.post(f"/admin/{path}", {"model": "c"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                403,
                "admin_needs_key",
            )


@on_loop
async def test_operators_load_unload_and_replan():
    world = World(Placement((group([0], "c"), group([1]))), num_devices=2, api_key="secret")
    async with opened(world, "secret") as client:
        await world.settled()
        loaded = await client.post("/admin/load", {"model": "d"})
        assert loaded.status_code == 200
        await world.settled()
        assert len(world.hosting("d")) == 1
        gone = await client.post("/admin/unload", {"model": "d"})
        assert gone.status_code == 200
        await world.until(lambda: not world.hosting("d"))
        again = await client.post("/admin/unload", {"model": "d"})
        assert (again.status_code, again.json()["error"]["param"]) == (400, "model")
        empty = await client.post("/admin/replan", {})
        assert (empty.status_code, empty.json()["error"]["code"]) == (503, "server_unavailable")
        client.headers.clear()
        assert (await client.post("/admin/load", {"model": "d"})).status_code == 401
