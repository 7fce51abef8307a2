"""The front door over groups in memory: routing, limits, models on demand, lost groups."""

import asyncio
import dataclasses
import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import msgspec
import pytest

from blocks.sched.placement import Group, Placement
from recipes.place.fleet import Slo, replanner
from recipes.place.front import launcher_of
from recipes.serve.job import Job
from recipes.serve.page import ClusterState
from recipes.serve.sampling_params import SamplingParams
from tests.place import configs
from tests.place.fleet.clusters import PROFILES, SHAPES, group
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


def two(*models: str) -> Placement:
    """Two groups that host the same."""
    return Placement((group([0], *models), group([1], *models)))


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
async def test_the_state_of_the_cluster_is_shown():
    world = World(Placement((group([0], "c"), group([1, 2], "a"))), slos={"c": Slo(2.0)})
    async with opened(world) as client:
        await world.settled()
        await client.text("c")
        state = msgspec.json.decode((await client.get("/cluster")).content, type=ClusterState)
        assert [(g.devices, g.state) for g in state.groups] == [((0,), "ready"), ((1, 2), "ready")]
        assert [one.model for one in state.groups[1].models] == ["a"]
        assert {one.node for one in state.groups} == {socket.gethostname()}
        views = {view.model: view for view in state.models}
        assert (views["c"].attainment, views["c"].slo_ttft_s) == (1.0, 2.0)
        assert views["a"].attainment is None
        assert "is loaded on group" in "".join(event.text for event in state.events)
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_groups_are_shown_on_the_machines_they_lie_on(num_nodes):
    node_of = launcher_of(configs.two(f"num_nodes={num_nodes}")).node_of
    world = World(Placement((group([0], "c"), group([1, 2], "a"))), node_of=node_of)
    state = world.lobby.cluster()
    assert state is not None
    here = socket.gethostname()
    if num_nodes == 1:
        assert [one.node for one in state.groups] == [here, here]
    else:
        assert [one.node for one in state.groups] == [
            f"{here} (node 0)",
            f"{here} (node 0), {here} (node 1)",
        ]


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
    world = World(two("c"), num_devices=2)
    async with opened(world) as client:
        await world.settled()
        for _ in range(10):
            await client.text("c")
        world.replanner._executor = Killed()
        with pytest.raises(BrokenProcessPool):
            await world.replanner.look()
        assert await world.replanner.look() is not None


@pytest.mark.parametrize("name", ["fleet", "front"])
def test_packages_say_what_they_export(name):
    module = __import__(f"recipes.place.{name}", fromlist=["__all__"])
    assert module.__all__ == sorted(module.__all__)
