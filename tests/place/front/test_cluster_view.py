"""The state of the cluster, as it is shown."""

import socket

import msgspec
import pytest

from blocks.sched.placement import Placement
from recipes.place.fleet import Slo
from recipes.place.front import launcher_of
from recipes.serve.page import ClusterState
from tests.place import configs
from tests.place.fleet.clusters import group
from tests.place.front.fakes import World, opened
from tests.place.on_loop import on_loop


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
