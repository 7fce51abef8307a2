"""``compose``: layers of a model one after the other, as one graph. No torch."""

import dataclasses
import functools
from collections.abc import Sequence

from blocks.sharding import OpGraph, OpNode, TensorValue
from blocks.sharding.stage_graph import RECEIVE, SEND
from recipes.plan.layers.chain import LayerChain

Origins = tuple[tuple[int, int], ...]


def compose(
    chain: LayerChain, layers: Sequence[int], stands_for: Sequence[Sequence[int]] | None = None
) -> tuple[OpGraph, Origins]:
    """The graph of some layers of a model.

    What a layer receives comes from the layer as far before or behind it as in the model, if that
    is of the same kind there, else from the layer of the model itself; where neither is among
    ``layers`` it is received, once where several layers receive it. What layers of the model
    receive that are not here is sent.

    Args:
        stands_for: for each the layers of the model it stands for; default itself.

    Returns:
        The graph, and for every node (which of ``layers``, which node of it).
    """
    return _Composing(chain, layers, stands_for or [(layer,) for layer in layers]).graph()


class _Composing:
    def __init__(
        self, chain: LayerChain, layers: Sequence[int], stands_for: Sequence[Sequence[int]]
    ) -> None:
        self.chain, self.layers, self.stands_for = chain, layers, stands_for
        self.inside = frozenset(layer for of in stands_for for layer in of)
        self.sources: dict[tuple[int, int], tuple[int, int]] = {}
        self.cuts = [chain.layers[chain.sequence[layer]] for layer in layers]
        self.values: list[TensorValue] = []
        self.nodes: list[OpNode] = []
        self.origins: list[tuple[int, int]] = []
        self.at: list[dict[int, int]] = [{} for _ in layers]  # value of a layer to value here
        self.shared: dict[int, tuple[int, ...]] = {}  # node of the traced graph to its values
        self.taken: set[tuple[int, int]] = set()
        self.arrived: dict[tuple[int, int], int] = {}  # of a layer of the model to value here
        self.supply = [self._supply(place) for place in range(len(layers))]

    def _supply(self, place: int) -> dict[int, tuple[int, int]]:
        """For every value received: (place, value) of those of the layers that make it."""
        chain = self.chain
        template = chain.sequence[self.layers[place]]
        found: dict[int, tuple[int, int]] = {}
        for number, (value, source) in enumerate(chain.layers[template].receives):
            maker = self._beside(place, number) or self._itself(place, value, source)
            local = chain.layers[template].local[value]
            if maker is not None:
                found[local] = maker
                self.taken.add(maker)
            else:
                self.sources[place, local] = chain.source_of(self.layers[place], number)
        return found

    def _beside(self, place: int, number: int) -> tuple[int, int] | None:
        """Of what such a layer receives as its ``number``-th: the one as far away as in the model.

        The neighbour may be of another kind than that of the layer this one is a copy of, but
        then it is of the kind of another such layer's.
        """
        for template in self.chain.alike(self.chain.sequence[self.layers[place]]):
            value, source = self.chain.layers[template].receives[number]
            beside = place + source - template
            inside = 0 <= beside < len(self.layers)
            if inside and self._kind(beside) == self.chain.kinds[source]:
                return beside, self.chain.layers[source].local[value]
        return None

    def _itself(self, place: int, value: int, source: int) -> tuple[int, int] | None:
        """The layer of the model that makes a value, if it is there."""
        sequence = self.chain.sequence
        same = [p for p, layer in enumerate(self.layers) if sequence[layer] == source]
        if not same or same[0] == place:
            return None
        return same[0], self.chain.layers[source].local[value]

    def _kind(self, place: int) -> str:
        return self.chain.kind(self.layers[place])

    def graph(self) -> tuple[OpGraph, Origins]:
        places = range(len(self.layers))
        for phase, order in (
            ("forward", places),
            ("backward", reversed(places)),
            ("update", places),
        ):
            for place in order:
                for at, node in enumerate(self.cuts[place].graph.nodes):
                    if node.phase == phase:
                        self._add(place, at, node)
        returns = [
            (self.at[place][new], self.at[place][old])
            for place in places
            for new, old in self.cuts[place].graph.returns
        ]
        return OpGraph(tuple(self.values), tuple(self.nodes), tuple(returns)), tuple(self.origins)

    def _add(self, place: int, at: int, node: OpNode) -> None:
        cut, here = self.cuts[place], self.at[place]
        origin = cut.nodes[at]
        if node.op == RECEIVE and node.outputs[0] in self.supply[place]:
            maker, value = self.supply[place][node.outputs[0]]
            here[node.outputs[0]] = self.at[maker][value]
            return
        if node.op == RECEIVE:
            source = self.sources[place, node.outputs[0]]
            if source in self.arrived:
                here[node.outputs[0]] = self.arrived[source]
                return
            self.arrived[source] = len(self.values)
        if node.op == SEND and self._stays(place, node.inputs[0]):
            return
        if origin in self.shared:  # made of inputs alone: once is enough
            here.update(zip(node.outputs, self.shared[origin], strict=True))
            return
        inputs = tuple(here[value] for value in node.inputs)
        outputs = []
        for value in node.outputs:
            here[value] = len(self.values)
            outputs.append(here[value])
            tensor = cut.graph.values[value]
            self.values.append(dataclasses.replace(tensor, name=f"{place}@{tensor.name}"))
        self.nodes.append(
            dataclasses.replace(
                node, name=f"{place}@{node.name}", inputs=inputs, outputs=tuple(outputs)
            )
        )
        self.origins.append((place, at))
        if origin in self._free:
            self.shared[origin] = tuple(outputs)

    def _stays(self, place: int, value: int) -> bool:
        """Whether a value goes to layers that are here, and to none that are not."""
        if (place, value) not in self.taken or len(self.inside) == self.chain.num_layers:
            return (place, value) in self.taken
        readers = (self.chain.readers.get((at, value), ()) for at in self.stands_for[place])
        return all(self.inside.issuperset(layers) for layers in readers)

    @functools.cached_property
    def _free(self) -> set[int]:
        """Nodes of the traced graph that several layers compute for themselves."""
        seen: dict[int, int] = {}
        for template, cut in enumerate(self.chain.layers):
            for node, origin in zip(cut.graph.nodes, cut.nodes, strict=True):
                if origin >= 0 and (node.role == "input" or seen.get(origin, template) != template):
                    seen[origin] = -2
                elif origin >= 0:
                    seen.setdefault(origin, template)
        return {origin for origin, found in seen.items() if found == -2}
