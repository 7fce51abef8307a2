"""The graph of a deep module from the graph of a shallow one: the middle block, many times."""

import dataclasses
import heapq
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils import _pytree as pytree

from recipes.plan.trace.depth import KEPT_UNITS, NotRepeating, Shortened
from recipes.plan.trace.joint_graph import Place
from recipes.plan.trace.origin import Origin

_TEMPLATE = 1
"""The unit that is copied; the one behind it has to be alike."""


def expand(
    graph_module: fx.GraphModule, origins: Mapping[fx.Node, Origin], run: Shortened
) -> tuple[fx.GraphModule, dict[fx.Node, Origin]]:
    """The joint graph with the units of ``run`` that were left out, and where its nodes come from.

    Parameters, buffers and modules bear the names they have in the whole module.

    Raises:
        NotRepeating: two units in the middle differ, so that what lies between is not known.
    """
    return _Expansion(graph_module, origins, run).build()


class _Copy(NamedTuple):
    """A node of the new graph: a traced node, as part of a unit.

    node: the traced one; unit: of the whole run, 0 for nodes that are in none.
    """

    node: fx.Node
    unit: int


class _Expansion:
    def __init__(
        self, graph_module: fx.GraphModule, origins: Mapping[fx.Node, Origin], run: Shortened
    ) -> None:
        self._graph_module, self._origins, self._run = graph_module, origins, run
        self._nodes = [node for node in graph_module.graph.nodes if node.op != "output"]
        self._order = {node: at for at, node in enumerate(self._nodes)}
        self._unit = {node: self._unit_of(node) for node in self._nodes}
        self._members: list[list[fx.Node]] = [[] for _ in range(KEPT_UNITS)]
        for node in self._nodes:
            unit = self._unit[node]
            if unit is not None:
                self._members[unit].append(node)
        self._place = {n: at for members in self._members for at, n in enumerate(members)}
        self._before: dict[tuple[fx.Node, fx.Node], fx.Node] = {}

    def build(self) -> tuple[fx.GraphModule, dict[fx.Node, Origin]]:
        self._check()
        copies = [_Copy(node, self._whole_unit(node)) for node in self._nodes]
        first, last = _TEMPLATE + 1, self._run.num_units - KEPT_UNITS + _TEMPLATE + 1
        copies += [
            _Copy(node, unit) for unit in range(first, last) for node in self._members[_TEMPLATE]
        ]
        graph = fx.Graph()
        made: dict[_Copy, fx.Node] = {}
        origins: dict[fx.Node, Origin] = {}
        for copy in self._sorted(copies):
            made[copy] = self._emit(graph, copy, made)
            origin = self._origins.get(copy.node)
            if origin is not None:
                module = self._renamed(origin.module, copy.unit)
                origins[made[copy]] = origin._replace(module=module)
        self._emit_output(graph, copies, made)
        return fx.GraphModule(self._graph_module, graph), origins

    def _emit(self, graph: fx.Graph, copy: _Copy, made: dict[_Copy, fx.Node]) -> fx.Node:
        node = copy.node

        def swap(one: fx.Node) -> fx.Node:
            return made[self._seen_from(copy, one)]

        args, kwargs = fx.map_arg((node.args, node.kwargs), swap)  # pyright: ignore
        name = node.name if copy.unit == self._whole_unit(node) else f"{node.name}_u{copy.unit}"
        target: Any = name if node.op == "placeholder" else node.target
        new = graph.create_node(node.op, target, args, kwargs, name=name)  # pyright: ignore
        new.meta = dict(node.meta)
        if "place" in node.meta:
            new.meta["place"] = self._renamed_place(node.meta["place"], copy.unit)
        return new

    def _emit_output(
        self, graph: fx.Graph, copies: list[_Copy], made: dict[_Copy, fx.Node]
    ) -> None:
        output = self._graph_module.graph.output_node()
        given: Any = output.args[0]
        units: dict[fx.Node, list[int]] = {}
        for node, unit in copies:
            units.setdefault(node, []).append(unit)
        values, places = [], []
        for node, place in zip(given, output.meta["place"], strict=True):
            of_block = place.kind != "loss" and self._unit_of_name(place.name) is not None
            for unit in units[node] if of_block else units[node][:1]:
                values.append(made[_Copy(node, unit)])
                places.append(self._renamed_place(place, unit))
        graph.output(tuple(values)).meta["place"] = tuple(places)

    # which units are read

    def _seen_from(self, copy: _Copy, one: fx.Node) -> _Copy:
        """What an argument of a traced node stands for in a unit of the whole run."""
        mine, its = self._unit[copy.node], self._unit[one]
        if mine is None or its is None:
            return _Copy(one, self._whole_unit(one))
        unit = copy.unit + its - mine
        traced = self._traced_unit(unit)
        if traced == its:
            return _Copy(one, unit)
        if its < mine:  # as the unit behind the template reads the template
            return _Copy(self._before[copy.node, one], unit)
        return _Copy(self._members[traced][self._place[one]], unit)

    def _traced_unit(self, unit: int) -> int:
        """The traced unit that a unit of the whole run is, or is a copy of."""
        if unit <= _TEMPLATE:
            return unit
        behind = unit - self._run.num_copies
        return max(_TEMPLATE, behind)

    def _whole_unit(self, node: fx.Node) -> int:
        unit = self._unit[node]
        if unit is None:
            return 0
        return unit if unit <= _TEMPLATE else unit + self._run.num_copies

    # checks

    def _check(self) -> None:
        one, two = self._members[_TEMPLATE], self._members[_TEMPLATE + 1]
        if len(one) != len(two):
            raise NotRepeating(f"{len(one)} and {len(two)} operations")
        for left, right in zip(one, two, strict=True):
            if self._described(left) != self._described(right):
                raise NotRepeating(f"{left.format_node()} and {right.format_node()}")
            for read, alike in zip(_reads(left), _reads(right), strict=True):
                if self._unit[read] == _TEMPLATE - 1:
                    self._before[left, read] = alike
        inside = {*one, *two}
        for node in self._nodes:
            unit = self._unit[node]
            for read in node.all_input_nodes:
                its = self._unit[read]
                if unit is None and read in inside:
                    raise NotRepeating(f"{node.name} reads {read.name} of a block in the middle")
                if unit is not None and its is not None and abs(unit - its) > 1:
                    raise NotRepeating(f"{node.name} reads {read.name} of a block further off")
        output = self._graph_module.graph.output_node()
        made: Any = output.args[0]
        for node, place in zip(made, output.meta["place"], strict=True):
            elsewhere = self._unit_of_name(place.name) != self._unit[node]
            if node in inside and place.kind != "loss" and elsewhere:
                raise NotRepeating(f"{place.name} is made in a block that it is not part of")

    def _described(self, node: fx.Node) -> Any:
        """What a node does, with its arguments by unit and place from where it stands."""
        unit = self._unit[node]

        def relative(one: fx.Node) -> str:
            its = self._unit[one]
            if its is None or unit is None:
                return f"<{one.name}>"
            return f"<here {self._place[one]}>" if its == unit else f"<{its - unit:+d}>"

        args, kwargs = fx.map_arg((node.args, node.kwargs), relative)  # pyright: ignore
        value = node.meta.get("val")
        tensors = [
            (tuple(one.shape), one.dtype)
            for one in pytree.tree_leaves(value)
            if isinstance(one, torch.Tensor)
        ]
        if node.op == "placeholder":
            return node.op, tensors, node.meta["place"].kind
        return node.op, node.target, repr(args), repr(kwargs), tensors

    # order

    def _sorted(self, copies: list[_Copy]) -> list[_Copy]:
        """In an order they can run in: copies forward before, backward after the unit behind."""
        begin = self._begins()
        keys: dict[_Copy, tuple[float, int, int]] = {}
        for copy in copies:
            at = self._order[copy.node]
            if copy.unit == self._whole_unit(copy.node):
                keys[copy] = (at, 0, at)
                continue
            kind = self._kind(copy.node)
            if kind == "backward":
                keys[copy] = (begin[kind, _TEMPLATE] - 0.5, -copy.unit, at)
            else:
                keys[copy] = (begin[kind, _TEMPLATE + 1] - 0.5, copy.unit, at)
        waiting = {
            copy: [self._seen_from(copy, one) for one in copy.node.all_input_nodes]
            for copy in copies
        }
        readers: dict[_Copy, list[_Copy]] = {copy: [] for copy in copies}
        for copy, reads in waiting.items():
            for read in reads:
                readers[read].append(copy)
        missing = {copy: len(reads) for copy, reads in waiting.items()}
        number = {copy: at for at, copy in enumerate(copies)}
        ready = [(keys[copy], number[copy]) for copy in copies if not missing[copy]]
        heapq.heapify(ready)
        done: list[_Copy] = []
        while ready:
            copy = copies[heapq.heappop(ready)[1]]
            done.append(copy)
            for reader in readers[copy]:
                missing[reader] -= 1
                if not missing[reader]:
                    heapq.heappush(ready, (keys[reader], number[reader]))
        assert len(done) == len(copies), "a cycle among copied nodes"
        return done

    def _begins(self) -> dict[tuple[str, int], int]:
        """For the kinds of nodes and units the first one."""
        found: dict[tuple[str, int], int] = {}
        for unit, members in enumerate(self._members):
            for node in members:
                found.setdefault((self._kind(node), unit), self._order[node])
        return found

    def _kind(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return node.meta["place"].kind
        return self._origins[node].phase

    # names

    def _unit_of(self, node: fx.Node) -> int | None:
        if node.op == "placeholder":
            place: Place = node.meta["place"]
            owned = place.kind in ("parameter", "buffer")
            return self._unit_of_name(place.name) if owned else None
        return self._unit_of_name(self._origins[node].module)

    def _unit_of_name(self, name: str) -> int | None:
        block = self._block_of_name(name)
        return None if block is None else self._run.unit_of(block)

    def _block_of_name(self, name: str) -> int | None:
        start = f"{self._run.path}." if self._run.path else ""
        if not name.startswith(start):
            return None
        number = name[len(start) :].partition(".")[0]
        return int(number) if number.isdigit() else None

    def _renamed(self, name: str, unit: int) -> str:
        block = self._block_of_name(name)
        if block is None:
            return name
        start = f"{self._run.path}." if self._run.path else ""
        _, dot, rest = name[len(start) :].partition(".")
        return f"{start}{self._run.name_of(block, unit)}{dot}{rest}"

    def _renamed_place(self, place: Place, unit: int) -> Place:
        if place.kind not in ("parameter", "buffer", "gradient"):
            return place
        return dataclasses.replace(place, name=self._renamed(place.name, unit))


def _reads(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments of a call, with repetitions."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found
