"""``LayerChain``: a model as a row of layers, of which equal ones are kept once. No torch."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence

from blocks._checks import check
from blocks.sharding import OpGraph, StageGraph, cut_graph
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

    def name(self, layer: int, node: int) -> str:
        """Of a node of a layer of the model, with the number of the block that it is in."""
        template = self.sequence[layer]
        name, block = self.names[template][node], self.layers[template].graph.nodes[node].block
        list_, star, rest = name.partition("*")
        if block < 0 or not star:
            return name
        shift = layer - template if list_.rpartition(":")[2] == self._repeated else 0
        return f"{list_}{block + shift}{rest}"

    @functools.cached_property
    def _repeated(self) -> str:
        """How names in the blocks begin of which fewer were traced than there are."""
        repeated = next((t for t in self.sequence if self.sequence.count(t) > 1), None)
        if repeated is None:
            return ""
        nodes = zip(self.names[repeated], self.layers[repeated].graph.nodes, strict=True)
        return next((name.partition("*")[0] for name, node in nodes if node.block >= 0), "")

    def kind(self, layer: int) -> str:
        """Of a layer of the model."""
        return self.kinds[self.sequence[layer]]

    def alike(self, template: int) -> tuple[int, ...]:
        """Those of ``layers`` that are of one kind with one of them, itself first."""
        kind = self.kinds[template]
        others = (t for t, its in enumerate(self.kinds) if its == kind and t != template)
        return (template, *others)

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

    def source_of(self, layer: int, number: int) -> tuple[int, int]:
        """The layer of the model that makes what a layer receives as its ``number``-th, and the
        value in that layer's graph."""
        template = self.sequence[layer]
        value, source = self.layers[template].receives[number]
        for other in self.alike(template):
            there, from_layer = self.layers[other].receives[number]
            beside = layer + from_layer - other
            inside = 0 <= beside < self.num_layers
            if inside and self.kind(beside) == self.kinds[from_layer]:
                return beside, self.layers[from_layer].local[there]
        return self.sequence.index(source), self.layers[source].local[value]

    @functools.cached_property
    def readers(self) -> dict[tuple[int, int], frozenset[int]]:
        """For every (layer of the model, value of its graph) that others receive, those layers."""
        found: dict[tuple[int, int], set[int]] = {}
        for layer, template in enumerate(self.sequence):
            for number in range(len(self.layers[template].receives)):
                found.setdefault(self.source_of(layer, number), set()).add(layer)
        return {source: frozenset(layers) for source, layers in found.items()}


def _kind(graph: OpGraph) -> str:
    nodes = [(n.op, n.role, n.phase, n.rule, n.inputs, n.outputs) for n in graph.nodes]
    values = [(v.shape, v.dtype) for v in graph.values]
    return hashlib.sha256(repr((nodes, values, graph.returns)).encode()).hexdigest()
