"""Ways to spread the layers of a model over a submesh, from fast to small. Needs numpy."""

import dataclasses
from collections.abc import Callable

from blocks.sharding import Mesh, MeshCost, OpGraph, Strategy, TensorValue, fits, strategy_of
from blocks.sharding.intra_op import pose
from recipes.plan.config import STATE_BYTES
from recipes.plan.layers.reduced import Reduced
from recipes.plan.search.hull import Choices, Hull
from recipes.plan.search.layer_price import LayerPrice, layer_prices


def state_bytes(optimizer: str) -> Callable[[TensorValue], float]:
    """What an optimizer keeps for every element of a parameter: moments in float32 or wider, and a
    float32 copy of what is narrower."""
    moments = STATE_BYTES[optimizer]

    def held(value: TensorValue) -> float:
        return moments + 4.0 if value.itemsize < 4 else moments * value.itemsize / 4

    return held


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run layers on a mesh, whatever the size of a microbatch.

    mesh: on the first devices of the kind.
    choices: of every node of the reduced model.
    """

    mesh: Mesh
    choices: Choices

    def strategies(self, graph: OpGraph) -> tuple[Strategy, ...] | None:
        """The same on a graph of other sizes; None where that cannot be cut so."""
        found = []
        for node, choices in zip(graph.nodes, self.choices, strict=True):
            if not fits(node.rule, choices, self.mesh):
                return None
            found.append(strategy_of(node.rule, choices))
        return tuple(found)


def candidates(
    reduced: Reduced,
    cost: MeshCost,
    *,
    num_microbatches: int,
    in_flight: float,
    optimizer: str,
    points: int,
) -> tuple[Candidate, ...]:
    """The fastest choice of strategies, the smallest, and some of the best between them.

    They lie on the lower hull of seconds and bytes of the whole model, found by putting a price on
    each byte; at most ``points``.
    """
    held = state_bytes(optimizer)
    posed = pose(
        *(reduced.graph, cost.mesh, cost),
        num_microbatches=num_microbatches,
        in_flight=in_flight,
        state_bytes=held,
        pins=reduced.pins_on(cost.mesh),
    )
    hull = Hull(posed, reduced, cost, num_microbatches, in_flight, held)
    return tuple(Candidate(cost.mesh, choices) for choices in hull.best(points))


def priced(
    candidate: Candidate, reduced: Reduced, again: Reduced | None, cost: MeshCost, optimizer: str
) -> tuple[LayerPrice, ...] | None:
    """What the layers of a reduced model take as a candidate has it; None where it does not fit.

    Args:
        again: the same with its forward repeated, for what that takes; None where it is not.
    """
    strategies = candidate.strategies(reduced.graph)
    if strategies is None:
        return None
    held = state_bytes(optimizer)
    prices = layer_prices(reduced.graph, reduced.layer_of, strategies, cost, held)
    if again is not None:  # an operation done again is done as it was the first time
        of = dict(zip(reduced.origins, strategies, strict=True))
        repeated = [of[origin] for origin in again.origins]
        longer = layer_prices(again.graph, again.layer_of, repeated, cost, held)
        for price, other in zip(prices, longer, strict=True):
            price.again_s = max(0.0, other.seconds("backward") - price.seconds("backward"))
    return prices
