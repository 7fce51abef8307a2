"""``IntraOpPlan``: one strategy for every node of a graph on a mesh, as data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from blocks._checks import reading
from blocks.sharding.intra_op.price import CollectiveUse, Price
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_graph import OpGraph
from blocks.sharding.placement import Placement, parse_placement
from blocks.sharding.strategy import Strategy


@dataclasses.dataclass(frozen=True)
class IntraOpPlan:
    """How every operation of a graph is spread over a mesh, and what that costs.

    mesh: of which ranks.
    strategies: of every node of the graph, in order.
    price: seconds, bytes and collectives.
    num_microbatches: of a step, over which what happens once a step is spread.
    in_flight: microbatches whose activations are held at once.
    bound_s: no choice that keeps to the memory cap and the pins takes fewer seconds.
    memory_cap: bytes a rank may hold; None where memory was not asked about.
    """

    mesh: Mesh
    strategies: tuple[Strategy, ...]
    price: Price
    num_microbatches: int
    in_flight: int | float
    bound_s: float
    memory_cap: int | float | None = None

    @property
    def objective_s(self) -> float:
        """Seconds of a microbatch, with its share of what happens once a step."""
        price = self.price
        return price.forward_s + price.backward_s + price.step_s / self.num_microbatches

    @property
    def gap(self) -> float:
        """How far the plan may be from the best there is: 0.01 for a hundredth of the bound."""
        beyond = max(0.0, self.objective_s - self.bound_s)
        return beyond / self.bound_s if self.bound_s > 0 else (0.0 if not beyond else float("inf"))

    @property
    def memory_bytes(self) -> float:
        """Of the fullest rank: what it holds throughout, and of all microbatches in flight."""
        return self.price.fixed_bytes + self.in_flight * self.price.flight_bytes

    @property
    def sent_bytes(self) -> dict[str, int]:
        """By kind of collective, of a microbatch and an update together."""
        found: dict[str, int] = {}
        for use in self.price.collectives:
            found[use.collective] = found.get(use.collective, 0) + use.sent_bytes
        return found

    @property
    def counts(self) -> dict[str, int]:
        """How many collectives of each kind, of a microbatch and an update together."""
        found: dict[str, int] = {}
        for use in self.price.collectives:
            found[use.collective] = found.get(use.collective, 0) + use.count
        return found

    def placements(self, graph: OpGraph, name: str) -> tuple[Placement, ...]:
        """How the value of this name lies as its maker leaves it."""
        at = next(at for at, value in enumerate(graph.values) if value.name == name)
        maker = graph.maker[at]
        return self.strategies[maker].outputs[graph.nodes[maker].outputs.index(at)]

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {
            "mesh": self.mesh.to_json(),
            "strategies": [_strategy_to_json(strategy) for strategy in self.strategies],
            "price": {**self.price._asdict(), "collectives": list(map(list, self.price[-1]))},
            "num_microbatches": self.num_microbatches,
            "in_flight": self.in_flight,
            "bound_s": self.bound_s,
            "memory_cap": self.memory_cap,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "IntraOpPlan":
        """
        Raises:
            ValueError: data that is no plan.
        """
        with reading("intra-op plan", data, cls):
            uses = tuple(CollectiveUse(*use) for use in data["price"]["collectives"])
            return cls(
                Mesh.from_json(data["mesh"]),
                tuple(_strategy_from_json(strategy) for strategy in data["strategies"]),
                Price(**{**data["price"], "collectives": uses}),
                data["num_microbatches"],
                data["in_flight"],
                data["bound_s"],
                data["memory_cap"],
            )


def _strategy_to_json(strategy: Strategy) -> list[Any]:
    tensors = [[list(map(str, one)) for one in side] for side in strategy[1:]]
    return [list(strategy.choices), *tensors]


def _strategy_from_json(data: Any) -> Strategy:
    choices, *sides = data
    parsed = [tuple(tuple(parse_placement(text) for text in one) for one in side) for side in sides]
    return Strategy(tuple(choices), *parsed)
