"""``Reduced``: a model with its long runs of equal layers cut short. No torch."""

import dataclasses
import functools
from collections.abc import Container, Mapping

from blocks.sharding import Mesh, OpGraph, repeat_forward
from blocks.sharding.repeat_forward import AGAIN, first_name
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.compose import compose
from recipes.plan.pins import pins_of
from recipes.plan.stage_plan import Placements


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
        stop = chain.num_layers if stop is None else stop
        stands_for = chain.reduced(first, stop, longest)
        graph, origins = compose(chain, [layers[0] for layers in stands_for], stands_for)
        once = cls(graph, origins, stands_for, pins or {}, chain)
        return once.repeating(range(first, stop)) if repeated else once

    def repeating(self, layers: Container[int]) -> "Reduced":
        """With the forward pass of these layers of the model done again."""
        layer_of = [layer for layer, _ in self.origins]
        wanted = {place for place, of in enumerate(self.stands_for) if of[0] in layers}
        again = repeat_forward(self.graph, layer_of, wanted).graph
        pairs = zip(self.graph.nodes, self.origins, strict=True)
        known = {node.name: origin for node, origin in pairs}
        origins = tuple(known[first_name(node.name)] for node in again.nodes)
        return dataclasses.replace(self, graph=again, origins=origins, repeated=True)

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
