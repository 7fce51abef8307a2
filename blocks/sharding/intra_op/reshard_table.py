"""``ReshardTables``: what reads cost, for all strategies of maker and readers. Needs numpy."""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from blocks.sharding.cost.cost_model import CostModel
from blocks.sharding.intra_op.node_labels import NodeLabels
from blocks.sharding.intra_op.problem import Table
from blocks.sharding.op_graph import TensorValue
from blocks.sharding.placement import Placement

Placements = tuple[Placement, ...]
Codes = npt.NDArray[np.intp]
Target = tuple[NodeLabels, tuple[int, ...]]
"""A reader and which of its inputs; no inputs where it is the parameter that an update renews."""


class ReshardTables:
    """Makes each table once: equal reads get the same array.

    Invariant: every key that names labels by their address has those labels held.
    """

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._number: dict[Placements, int] = {}
        self._codes: dict[tuple[int, str, int], Codes] = {}
        self._known: dict[tuple[tuple[int, ...], int], Table] = {}
        self._tables: dict[Hashable, tuple] = {}
        self._held: dict[int, NodeLabels] = {}

    def check_invariants(self) -> None:
        assert all(id(labels) == at for at, labels in self._held.items())

    def together(
        self,
        value: TensorValue,
        weight: float,
        source: tuple[NodeLabels, int],
        targets: Sequence[Target],
    ) -> Table:
        """Seconds with an axis for the maker and for one or two readers: every placement that is
        wanted counts once."""
        key = self._key(value, weight, source, targets)
        if key not in self._tables:
            rows, columns = self._of(source[0], "out", source[1]), self._wanted(targets)
            prices = weight * self._prices(value, rows, columns)  # [placements made, wanted]
            # One axis for the maker, one for each reader, each label's own placements.
            shape = (len(rows), *(len(of[0]) for of in columns))
            total = np.zeros(shape)
            seen: list[Codes] = []
            for axis, places in enumerate(columns, 1):
                for codes in places:
                    spread = [1] * len(shape)
                    spread[axis] = len(codes)
                    code = codes.reshape(spread)
                    new = np.ones([1] * len(shape), dtype=bool)
                    for other in seen:
                        new = new & (other != code)
                    row = rows.reshape([-1] + [1] * (len(shape) - 1))
                    total += np.where(new, prices[row, code], 0.0)
                    seen.append(code)
            self._tables[key] = (total,)
        return self._tables[key][0]

    def shared(
        self,
        value: TensorValue,
        weight: float,
        source: tuple[NodeLabels, int],
        targets: Sequence[Target],
    ) -> tuple[int, Table, tuple[Table, ...]]:
        """A copy in one other placement, for all readers that want it so.

        Returns:
            How many labels the copy has, the first for none at all; seconds by maker and copy;
            for every reader seconds by maker, copy and reader.
        """
        key = ("shared", *self._key(value, weight, source, targets))
        if key not in self._tables:
            rows, columns = self._of(source[0], "out", source[1]), self._wanted(targets)
            prices = weight * self._prices(value, rows, columns)
            by = [set(np.concatenate(places).tolist()) for places in columns]
            often = [c for c in sorted(set().union(*by)) if sum(c in codes for codes in by) > 1]
            copies = [c for c in often if prices[rows, c].any()]
            code = np.array([-1, *copies])
            to_copy = np.where(code >= 0, prices[rows][:, code], 0.0)
            through = []
            for places in columns:
                total = np.zeros((len(rows), len(code), len(places[0])))
                for at, codes in enumerate(places):
                    new = codes[None, :] != code[:, None]  # [copies, labels]
                    for other in places[:at]:
                        new &= (other != codes)[None, :]
                    total += np.where(new[None], prices[rows][:, codes][:, None, :], 0.0)
                through.append(total)
            self._tables[key] = code, to_copy, tuple(through)
        code, to_copy, through = self._tables[key]
        return len(code), to_copy, through

    def zeros(self, count: int) -> Table:
        """The same array for the same count."""
        key = ("zeros", count)
        if key not in self._tables:
            self._tables[key] = (np.zeros(count),)
        return self._tables[key][0]

    def codes(
        self,
        value: TensorValue,
        weight: float,
        source: tuple[NodeLabels, int],
        targets: Sequence[Target],
    ) -> tuple[Codes, Codes, tuple[tuple[Codes, ...], ...], Table]:
        """Numbers of placements, from 0 on: those that the labels of a shared copy stand for, -1
        for none; those that the maker's labels make; for every reader and each of its inputs those
        that its labels want; seconds from the latter to the last."""
        key = ("codes", *self._key(value, weight, source, targets))
        if key not in self._tables:
            rows, columns = self._of(source[0], "out", source[1]), self._wanted(targets)
            made, makes = np.unique(rows, return_inverse=True)
            want = np.unique(np.concatenate([codes for places in columns for codes in places]))
            wants = tuple(tuple(np.searchsorted(want, c) for c in places) for places in columns)
            prices = weight * self._prices(value, rows, columns)[np.ix_(made, want)]
            code = self._tables[("shared", *key[1:])][0]
            copied = np.where(code >= 0, np.searchsorted(want, code), -1)
            self._tables[key] = copied, makes, wants, prices
        copied, makes, wants, prices = self._tables[key]
        return copied, makes, wants, prices

    def _key(
        self,
        value: TensorValue,
        weight: float,
        source: tuple[NodeLabels, int],
        targets: Sequence[Target],
    ) -> tuple:
        for labels, _ in (source, *targets):
            self._held[id(labels)] = labels
        readers = tuple((id(labels), places) for labels, places in targets)
        return value.shape, value.itemsize, weight, id(source[0]), source[1], readers

    def _of(self, labels: NodeLabels, side: str, place: int) -> Codes:
        """For every label the number of the placements it has for one of its tensors."""
        key = (id(labels), side, place)
        if key not in self._codes:
            self._held[id(labels)] = labels
            number = self._number
            tensors = (s.outputs if side == "out" else s.inputs for s in labels.strategies)
            codes = [number.setdefault(each[place], len(number)) for each in tensors]
            self._codes[key] = np.array(codes)
        return self._codes[key]

    def _wanted(self, targets: Sequence[Target]) -> list[list[Codes]]:
        """For every reader and each of its inputs the placements that its labels want."""
        return [
            [self._of(labels, "in", at) for at in places] or [self._of(labels, "out", 0)]
            for labels, places in targets
        ]

    def _prices(self, value: TensorValue, rows: Codes, columns: list[list[Codes]]) -> Table:
        """Seconds from all placements numbered so far to all; worked out where asked for."""
        key, count = (value.shape, value.itemsize), len(self._number)
        known = self._known.get(key)
        if known is None or len(known) < count:
            grown = np.full((2 * count, 2 * count), np.nan)
            np.fill_diagonal(grown, 0.0)
            if known is not None:
                grown[: len(known), : len(known)] = known
            known = self._known[key] = grown
        wanted = np.unique(np.concatenate([codes for places in columns for codes in places]))
        made = np.unique(rows)
        missing = np.argwhere(np.isnan(known[np.ix_(made, wanted)]))
        if len(missing):
            names = list(self._number)
            for row, column in missing:
                source, target = int(made[row]), int(wanted[column])
                known[source, target] = self._cost.reshard_s(
                    value.shape, value.itemsize, names[source], names[target]
                )
        return known
