"""What layers cost adds up to what their graph does."""

import pytest

from blocks.sharding import Mesh, MeshCost, bundled_cluster
from blocks.sharding.intra_op.pose import adamw_bytes
from blocks.sharding.intra_op.price import price
from recipes.plan.layers.layers_of import layers_of
from recipes.plan.search.layer_price import layer_prices, total_price
from tests.plan.executing import random_strategies
from tests.plan.family_cases import family_case


@pytest.mark.parametrize("name", ["gpt2:tiny", "wide-resnet:tiny", "dlrm:tiny"])
@pytest.mark.parametrize("mesh", [Mesh.of(a=3), Mesh.of(a=2, b=4)], ids=str)
def test_layers_add_up_to_their_graph(name: str, mesh: Mesh) -> None:
    graph, cost = family_case(name).traced.graph, MeshCost(bundled_cluster("8xH100"), mesh)
    for seed in range(3):
        chosen = random_strategies(graph, mesh, seed)
        prices = layer_prices(graph, layers_of(graph), chosen, cost, adamw_bytes)
        total, whole = total_price(prices, [1] * len(prices)), price(graph, chosen, mesh, cost)
        found = [total.seconds(phase) for phase in ("forward", "backward", "update")]
        assert found == pytest.approx([whole.forward_s, whole.backward_s, whole.step_s])
        assert total.fixed_bytes == pytest.approx(whole.fixed_bytes)
        assert total.flight_bytes == pytest.approx(whole.flight_bytes)
