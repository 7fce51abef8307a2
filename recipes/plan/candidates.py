"""Ways to spread the layers of a model over a submesh, from fast to small. Needs numpy."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from blocks.sharding import (
    Cluster,
    Mesh,
    MeshCost,
    OpGraph,
    Strategy,
    Submesh,
    TensorValue,
    fits,
    repeat_forward,
    strategy_of,
)
from blocks.sharding.intra_op import Posed, Problem, pose
from blocks.sharding.repeat_forward import AGAIN, first_name
from recipes.plan.axis_descent import AxisDescent
from recipes.plan.chain import LayerChain
from recipes.plan.config import STATE_BYTES
from recipes.plan.layer_price import LayerPrice, layer_prices, total_price
from recipes.plan.pins import pins_of
from recipes.plan.stage_plan import Placements

AXES = ("x", "y")
"""Names of the axes of a stage's mesh; what each is for is what the plan decides."""

Choices = tuple[tuple[int, ...], ...]
"""Of every node, what each mesh axis cuts."""


def state_bytes(optimizer: str) -> Callable[[TensorValue], float]:
    """What an optimizer keeps for every element of a parameter."""
    moments = STATE_BYTES[optimizer]
    return lambda value: moments + (4.0 if value.itemsize < 4 else 0.0)


def meshes(cluster: Cluster, submesh: Submesh, max_axes: int) -> tuple[Mesh, ...]:
    """Logical meshes on a submesh: one axis, and every two whose inner one is inside of a host.

    On one host, where all pairs of devices are joined alike, the order of the axes means nothing
    and the longer one comes first.
    """
    devices = submesh.devices(cluster)
    count, inside = len(devices), submesh.num_devices
    found = [Mesh(AXES[:1], (count,), devices)]
    for inner in range(2, inside + 1):
        outer = count // inner
        if max_axes < 2 or inside % inner or outer < 2:
            continue
        if submesh.num_hosts > 1 or outer >= inner:
            found.append(Mesh(AXES, (outer, inner), devices))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Reduced:
    """A model with its long runs of equal layers cut short, as one graph.

    graph: of the layers that are left; with ``repeated``, with their forward passes done again.
    origins: for every node (which of them, which node of its graph); repeated nodes have those of
        the nodes they repeat.
    stands_for: for every one of them the layers of the model it stands for.
    pins: choices made beforehand, as plans name them; ``chain`` knows the names.
    """

    graph: OpGraph
    origins: tuple[tuple[int, int], ...]
    stands_for: tuple[tuple[int, ...], ...]
    pins: Mapping[str, Placements] = dataclasses.field(default_factory=dict)
    chain: LayerChain | None = None
    repeated: bool = False

    @classmethod
    def of(
        cls,
        chain: LayerChain,
        first: int = 0,
        stop: int | None = None,
        *,
        longest: int = 3,
        pins: Mapping[str, Placements] | None = None,
        repeated: bool = False,
    ) -> "Reduced":
        stands_for = chain.reduced(first, chain.num_layers if stop is None else stop, longest)
        graph, origins = chain.compose([layers[0] for layers in stands_for])
        if repeated:
            graph, origins = _repeat(graph, origins)
        return cls(graph, origins, stands_for, pins or {}, chain, repeated)

    def name(self, at: int) -> str:
        """What a plan calls a node within its layer."""
        assert self.chain is not None
        place, number = self.origins[at]
        name = self.chain.names[self.chain.sequence[self.stands_for[place][0]]][number]
        node = self.graph.nodes[at].name
        return name + AGAIN * (node != first_name(node))

    def pins_on(self, mesh: Mesh) -> dict[str, Placements] | None:
        """The pins by names of nodes; None where a mesh has another number of axes than they."""
        if not self.pins or self.chain is None:
            return {}
        templates = tuple(self.chain.sequence[layers[0]] for layers in self.stands_for)
        graph, axes = self.graph, len(mesh.axes)
        return pins_of(self.pins, self.chain, graph, self.origins, templates, axes)

    @functools.cached_property
    def layer_of(self) -> tuple[int, ...]:
        """For every node which of the layers that are left it is in."""
        return tuple(layer for layer, _ in self.origins)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many layers each of those left stands for."""
        return tuple(map(len, self.stands_for))


def _repeat(
    graph: OpGraph, origins: tuple[tuple[int, int], ...]
) -> tuple[OpGraph, tuple[tuple[int, int], ...]]:
    """The graph with the forward pass of every layer done again."""
    layer_of = [layer for layer, _ in origins]
    again = repeat_forward(graph, layer_of, set(layer_of)).graph
    known = {node.name: origin for node, origin in zip(graph.nodes, origins, strict=True)}
    return again, tuple(known[first_name(node.name)] for node in again.nodes)


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
    like: Candidate | None = None,
) -> tuple[Candidate, ...]:
    """The fastest choice of strategies, the smallest, and some of the best between them.

    They lie on the lower hull of seconds and bytes of the whole model, found by putting a price on
    each byte; at most ``points``.

    Args:
        like: a good choice for other sizes, to set out from.
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
    return tuple(Candidate(cost.mesh, choices) for choices in hull.best(points, like))


DEAR = 100.0
"""A price of memory at which all of it costs so many times the step; little else counts then."""


class Hull:
    """Choices by what the whole model takes and holds under them."""

    def __init__(
        self,
        posed: Posed,
        reduced: Reduced,
        cost: MeshCost,
        num_microbatches: int,
        in_flight: float,
        held: Callable[[TensorValue], float],
    ) -> None:
        self.posed, self.reduced, self.cost = posed, reduced, cost
        self.num_microbatches, self.in_flight, self.held = num_microbatches, in_flight, held
        self.descent = AxisDescent(posed)

    def best(self, points: int, like: Candidate | None = None) -> list[Choices]:
        """Choices of up to ``points`` corners of the hull, the fastest first."""
        problem = self.posed.problem
        starts = () if like is None else (self.descent.nearest(like.choices),)
        found = [self._point(problem.priced(0.0), starts)]
        if points > 1:
            dear = DEAR * found[0].seconds / max(found[0].size, 1.0)
            small = self._point(problem.priced(dear), (found[0].labels,))
            found += [small] * (small.size < found[0].size)
        while 1 < len(found) < points:
            pairs = list(itertools.pairwise(found))
            fast, small = max(pairs, key=lambda p: (p[1].seconds - p[0].seconds) * _less(p))
            if small.seconds <= fast.seconds:
                break
            price = (small.seconds - fast.seconds) / (fast.size - small.size)
            between = self._point(problem.priced(price), (small.labels,))
            line = fast.seconds + price * fast.size
            if between.seconds + price * between.size >= line * (1 - 1e-6):
                break
            found = sorted({*found, between}, key=lambda p: -p.size)
        return list(dict.fromkeys(point.choices for point in found))

    def _point(self, problem: Problem, starts: Sequence[tuple[int, ...]]) -> "Corner":
        labels, _ = self.descent.least(problem, starts)
        strategies = self.posed.strategies(labels)
        prices = layer_prices(
            self.reduced.graph, self.reduced.layer_of, strategies, self.cost, self.held
        )
        total = total_price(prices, self.reduced.counts)
        seconds = total.seconds("forward") + total.seconds("backward")
        seconds += total.seconds("update") / self.num_microbatches
        size = total.fixed_bytes + self.in_flight * total.flight_bytes
        return Corner(seconds, size, labels, tuple(s.choices for s in strategies))


class Corner(NamedTuple):
    """What the whole model takes and holds under some labels."""

    seconds: float
    size: float
    labels: tuple[int, ...]
    choices: Choices


def _less(pair: tuple[Corner, Corner]) -> float:
    return pair[0].size - pair[1].size


def priced(
    candidate: Candidate, reduced: Reduced, cost: MeshCost, optimizer: str
) -> tuple[LayerPrice, ...] | None:
    """What the layers of a reduced model take as a candidate has it; None where it does not fit."""
    strategies = candidate.strategies(reduced.graph)
    if strategies is None:
        return None
    held = state_bytes(optimizer)
    return layer_prices(reduced.graph, reduced.layer_of, strategies, cost, held)
