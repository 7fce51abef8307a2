"""Limits of time that requests and models bring."""

from recipes.place.fleet import Slo
from tests.place.fleet.clusters import two
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


@on_loop
async def test_what_cannot_be_in_time_is_refused_with_the_prediction():
    world = World(two("c"), slos={"c": Slo(10.0, 1.0)})
    async with opened(world) as client:
        await world.settled()
        limits = {"x-slo-ttft-ms": "60", "x-slo-tpot-ms": "500"}
        assert (await client.ask("c", 30, **limits)).status_code == 200
        refused = await client.ask("c", 150, **limits)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("slo_unreachable", "rate_limit_error")
        assert 0.15 < error["predicted_ttft_s"] < 0.3  # 150 tokens of 1 ms, 10 ms a step
        assert int(refused.headers["retry-after"]) >= 1
        slow = await client.ask("c", 5, **{"x-slo-tpot-ms": "1"})
        assert (slow.status_code, slow.json()["error"]["code"]) == (429, "slo_unreachable")
        for bad in ("0", "-3", "soon", "inf", "nan"):
            wrong = await client.ask("c", 5, **{"x-slo-ttft-ms": bad})
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-slo-ttft-ms")
        shown = (await client.get("/metrics")).text
        assert 'blocks_cluster_requests_total{model="c",outcome="refused"} 2.0' in shown
        assert 'blocks_cluster_requests_total{model="c",outcome="served"} 1.0' in shown
        assert 'blocks_cluster_slo_requests_total{met="false",model="c"} 2.0' in shown


@on_loop
async def test_a_models_own_limits_hold_where_a_request_brings_none():
    world = World(two("c"), slos={"c": Slo(0.06, 0.5)})
    async with opened(world) as client:
        await world.settled()
        assert (await client.ask("c", 30)).status_code == 200
        assert (await client.ask("c", 150)).status_code == 429
        assert (await client.ask("c", 150, **{"x-slo-ttft-ms": "2000"})).status_code == 200
