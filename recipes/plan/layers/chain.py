"""``LayerChain``: a model as a row of layers, of which equal ones are kept once. No torch."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence

from blocks._checks import check
from blocks.sharding import OpGraph, OpNode, StageGraph, TensorValue, cut_graph
from blocks.sharding.stage_graph import RECEIVE, SEND
from recipes.plan.layers.layers_of import layers_of
from recipes.plan.layers.node_names import name_pattern, node_names


@dataclasses.dataclass(frozen=True)
class LayerChain:
    """The layers of a model, and what they exchange.

    layers: as cut out of a traced graph, which may have fewer of the repeated ones.
    sequence: for every layer of the model which of ``layers`` it is.
    """

    layers: tuple[StageGraph, ...]
    sequence: tuple[int, ...]

    @classmethod
    def of(
        cls, graph: OpGraph, layer_of: Sequence[int] | None = None, num_layers: int | None = None
    ) -> "LayerChain":
        """The chain of a traced graph.

        Args:
            layer_of: layer of every node; default ``layers_of``.
            num_layers: layers of the whole model, where the graph was traced with fewer: a layer
                of the longest run of equal ones stands for those that are missing.
        """
        cuts = cut_graph(graph, layers_of(graph) if layer_of is None else layer_of)
        chain = cls(cuts, tuple(range(len(cuts))))
        missing = 0 if num_layers is None else num_layers - len(cuts)
        if not missing:
            return chain
        runs = [
            list(run) for _, run in itertools.groupby(range(len(cuts)), chain.kinds.__getitem__)
        ]
        longest = max(runs, key=len)
        hint = "trace two repeated blocks or more, and no more than the model has"
        check(
            missing > 0 and len(longest) > 1, "num_layers", f"above {len(cuts)}", num_layers, hint
        )
        middle = longest[(len(longest) - 1) // 2]
        before, after = range(middle), range(middle, len(cuts))
        return cls(cuts, (*before, *[middle] * missing, *after))

    @property
    def num_layers(self) -> int:
        return len(self.sequence)

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """For every one of ``layers`` a digest; equal where all but the names is."""
        return tuple(_kind(cut.graph) for cut in self.layers)

    @functools.cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """For every one of ``layers`` the names of its nodes; see ``node_names``."""
        return tuple(node_names(cut.graph.nodes) for cut in self.layers)

    def kind(self, layer: int) -> str:
        """Of a layer of the model."""
        return self.kinds[self.sequence[layer]]

    def digest(self) -> str:
        """Of operations and parameters, whatever the size of the batch."""
        parts = []
        for at in range(len(self.layers)):
            nodes, values = self.layers[at].graph.nodes, self.layers[at].graph.values
            parts.append(
                [
                    [name_pattern(n.name, n.block), list(v.shape), v.dtype]
                    for n in nodes
                    if n.role == "parameter" and (v := values[n.outputs[0]])
                ]
                + sorted(n.op for n in nodes if n.role == "op")
            )
        digests = [hashlib.sha256(json.dumps(part).encode()).hexdigest() for part in parts]
        text = ",".join(digests[at] for at in self.sequence)
        return hashlib.sha256(text.encode()).hexdigest()

    def reduced(self, first: int, stop: int, longest: int = 3) -> tuple[tuple[int, ...], ...]:
        """Layers ``first`` to ``stop`` of the model, runs of equal ones cut to ``longest``.

        Returns:
            For every layer of the shorter chain the layers of the model it stands for: its
            middle ones stand for many.
        """
        found: list[tuple[int, ...]] = []
        for _, run in itertools.groupby(range(first, stop), self.kind):
            layers = tuple(run)
            if len(layers) <= longest:
                found += [(layer,) for layer in layers]
                continue
            head = (longest - 1) // 2 or longest > 1
            tail = longest - 1 - head
            found += [(layer,) for layer in layers[:head]]
            found.append(layers[head : len(layers) - tail])
            found += [(layer,) for layer in layers[len(layers) - tail :]]
        return tuple(found)

    def compose(self, layers: Sequence[int]) -> tuple[OpGraph, tuple[tuple[int, int], ...]]:
        """The graph of these layers of the model, one after the other.

        What a layer receives comes from the layer as far before or behind it as in the model, if
        that is of the same kind there, else from the layer of the model itself; where neither is
        among ``layers`` it is received.

        Returns:
            The graph, and for every node (which of ``layers``, which node of it).
        """
        return _Composing(self, layers).graph()


def _kind(graph: OpGraph) -> str:
    nodes = [(n.op, n.role, n.phase, n.rule, n.inputs, n.outputs) for n in graph.nodes]
    values = [(v.shape, v.dtype) for v in graph.values]
    return hashlib.sha256(repr((nodes, values, graph.returns)).encode()).hexdigest()


class _Composing:
    def __init__(self, chain: LayerChain, layers: Sequence[int]) -> None:
        self.chain, self.layers = chain, layers
        self.cuts = [chain.layers[chain.sequence[layer]] for layer in layers]
        self.values: list[TensorValue] = []
        self.nodes: list[OpNode] = []
        self.origins: list[tuple[int, int]] = []
        self.at: list[dict[int, int]] = [{} for _ in layers]  # value of a layer to value here
        self.shared: dict[int, tuple[int, ...]] = {}  # node of the traced graph to its values
        self.taken: set[tuple[int, int]] = set()
        self.supply = [self._supply(place) for place in range(len(layers))]

    def _supply(self, place: int) -> dict[int, tuple[int, int]]:
        """For every value received: (place, value) of those of the layers that make it."""
        chain = self.chain
        template = chain.sequence[self.layers[place]]
        alike = [t for t in range(len(chain.layers)) if chain.kinds[t] == chain.kinds[template]]
        alike.sort(key=lambda t: t != template)
        found: dict[int, tuple[int, int]] = {}
        for number, (value, source) in enumerate(chain.layers[template].receives):
            maker = self._beside(place, number, alike) or self._itself(place, value, source)
            if maker is not None:
                found[chain.layers[template].local[value]] = maker
                self.taken.add(maker)
        return found

    def _beside(self, place: int, number: int, alike: Sequence[int]) -> tuple[int, int] | None:
        """Of what such a layer receives as its ``number``-th: the one as far away as in the model.

        The neighbour may be of another kind than that of the layer this one is a copy of, but
        then it is of the kind of another such layer's.
        """
        for template in alike:
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

    def graph(self) -> tuple[OpGraph, tuple[tuple[int, int], ...]]:
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
            source, value = self.supply[place][node.outputs[0]]
            here[node.outputs[0]] = self.at[source][value]
            return
        if node.op == SEND and (place, node.inputs[0]) in self.taken:
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
