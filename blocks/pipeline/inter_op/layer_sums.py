"""``LayerSums``: stages that cost what their layers do together. Needs numpy, no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from blocks._checks import check
from blocks.pipeline.inter_op.stage_table import (
    StageCost,
    StageTable,
    Transfer,
    check_bounds,
    transfers,
)
from blocks.pipeline.inter_op.submesh import SubmeshShape


class LayerSums:
    """Stages that cost what their layers cost together; the largest transient counts.

    What is added to every stage may be less than nothing, for layers that cost less at the ends of
    a stage; no stage costs less than nothing.

    Args:
        shapes, options: see ``StageTable``.
        layers: the numbers of ``StageCost`` by name, each ``[layer, shape, option]``; those left
            out are zero. Infinite forward seconds say the layer cannot run so.
        stage: added to every stage, by name, ``[shape, option]``.
        transfer: seconds over a boundary from one shape to another and back.
    """

    def __init__(
        self,
        shapes: Sequence[SubmeshShape],
        options: Sequence[str],
        layers: Mapping[str, Any],
        *,
        stage: Mapping[str, Any] | None = None,
        transfer: Transfer | None = None,
    ) -> None:
        import numpy as np

        self.shapes, self.options = tuple(shapes), tuple(options)
        self.layers = {name: np.asarray(values, float) for name, values in layers.items()}
        self.stage = {name: np.asarray(values, float) for name, values in (stage or {}).items()}
        self.transfer = transfer
        for name in (*self.layers, *self.stage):
            check(name in StageCost._fields, "layers", f"names of {StageCost._fields}", name)
        check("forward_s" in self.layers, "layers", "forward_s among them", [*self.layers])
        self.num_layers = len(self.layers["forward_s"])
        for name, values in self.layers.items():
            wanted = (self.num_layers, len(self.shapes), len(self.options))
            check(values.shape == wanted, f"shape of {name}", wanted, values.shape)

    def at(self, bounds: Sequence[int]) -> StageTable:
        """The table of stages that begin and end at ``bounds``."""
        import numpy as np

        check_bounds(bounds, self.num_layers)
        count = len(bounds)
        shape = (count, count, len(self.shapes), len(self.options))
        above = np.arange(count)[:, None] < np.arange(count)[None, :]
        blank = np.zeros((self.num_layers, *shape[2:]))
        cannot = _sums(np.isinf(self.layers["forward_s"]).astype(float), bounds) > 0
        cells = {}
        for name in StageCost._fields:
            values = self.layers.get(name, blank)
            values = np.where(np.isfinite(values), values, 0.0)
            found = (_largest if name == "transient_bytes" else _sums)(values, bounds)
            found = np.maximum(found + self.stage.get(name, 0.0), 0.0)
            found = np.where(above[:, :, None, None] & ~cannot, found, np.inf)
            cells[name] = np.ascontiguousarray(found)
        sends = transfers(bounds, self.shapes, self.transfer)
        return StageTable(tuple(bounds), self.shapes, self.options, cells, *sends)


def _sums(values: Any, bounds: Sequence[int]) -> Any:
    """Over the layers between every two bounds."""
    import numpy as np

    upto = np.concatenate([np.zeros((1, *values.shape[1:])), values.cumsum(axis=0)])[list(bounds)]
    return np.maximum(upto[None] - upto[:, None], 0.0)


def _largest(values: Any, bounds: Sequence[int]) -> Any:
    """The largest of the layers between every two bounds."""
    import numpy as np

    count = len(bounds)
    pieces = np.maximum.reduceat(values, list(bounds[:-1]), axis=0)
    found = np.zeros((count, count, *values.shape[1:]))
    for first in range(count - 1):
        found[first, first + 1 :] = np.maximum.accumulate(pieces[first:], axis=0)
    return found
