"""``LazyStages``: stage costs asked for when they are needed. Needs numpy, no torch."""

from collections.abc import Sequence

from blocks._checks import check_count
from blocks.pipeline.inter_op.stage_table import (
    StageCost,
    StageCosts,
    StageTable,
    Transfer,
    check_bounds,
)
from blocks.pipeline.inter_op.submesh import SubmeshShape


class LazyStages:
    """Stage costs asked for when they are needed, and once each.

    Args:
        num_layers, shapes, options: see ``StageTable``.
        stage: cost of layers ``first`` up to ``stop`` on a shape with an option, or None.
        transfer: seconds over a boundary from one shape to another and back.
    """

    def __init__(
        self,
        num_layers: int,
        shapes: Sequence[SubmeshShape],
        options: Sequence[str],
        stage: StageCosts,
        *,
        transfer: Transfer | None = None,
    ) -> None:
        check_count("num_layers", num_layers)
        self.num_layers, self.shapes, self.options = num_layers, tuple(shapes), tuple(options)
        self._stage, self._transfer = stage, transfer
        self._kept: dict[tuple[int, int, SubmeshShape, str], StageCost | None] = {}

    def at(self, bounds: Sequence[int]) -> StageTable:
        """The table of stages that begin and end at ``bounds``."""
        check_bounds(bounds, self.num_layers)
        return StageTable.evaluate(
            bounds, self.shapes, self.options, self._once, transfer=self._transfer
        )

    @property
    def num_evaluated(self) -> int:
        """Stages whose costs were asked for."""
        return len(self._kept)

    def _once(self, first: int, stop: int, shape: SubmeshShape, option: str) -> StageCost | None:
        key = (first, stop, shape, option)
        if key not in self._kept:
            self._kept[key] = self._stage(*key)
        return self._kept[key]
