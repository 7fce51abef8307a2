"""``Layout``: where the parts of a figure go, in pixels."""

import dataclasses

from blocks._checks import check
from blocks.pipeline.view.figure import Figure
from blocks.pipeline.view.legend import ROW, rows

LEFT = 76
"""Width of the names of the ranks."""
RIGHT = 84
"""Width of what is said of each rank at the end of its lane."""
TITLE = 68
HEADER = 26
AXIS = 30
MIN_WIDTH = 640
GAP = 3


@dataclasses.dataclass(frozen=True)
class Layout:
    """The places of everything in a picture ``width`` pixels wide.

    legend: where the legend begins. lane: height of a rank. tops: where the lanes of each panel
    begin; memory_tops likewise. row: height of a rank's memory. axis: where the axis is.
    span: time from its left end to its right end.
    """

    width: int
    legend: int
    lane: int
    row: int
    tops: tuple[int, ...]
    memory_tops: tuple[int, ...]
    axis: int
    height: int
    span: float

    @property
    def plot(self) -> int:
        """Width of the part that has a time."""
        return self.width - LEFT - RIGHT

    def x(self, time: float) -> float:
        """Pixels from the left end of the lanes."""
        return time / self.span * self.plot if self.span else 0.0

    def y(self, panel: int, rank: int) -> int:
        """Upper end of a lane."""
        return self.tops[panel] + rank * (self.lane + GAP)

    def y_memory(self, block: int, rank: int) -> int:
        """Lower end of a curve."""
        return self.memory_tops[block] + rank * (self.row + GAP) + self.row


def layout_of(figure: Figure, width: int, *, has_title: bool, span: float | None = None) -> Layout:
    """Places for a figure: fewer ranks are drawn higher. ``span``: of the axis, if longer."""
    check(width >= MIN_WIDTH, "width", f"at least {MIN_WIDTH} pixels", width)
    ranks = figure.num_ranks
    lane = next((h for most, h in ((2, 34), (4, 28), (8, 22), (16, 17)) if ranks <= most), 12)
    row = max(lane - 4, 12)
    legend = y = TITLE if has_title else 0
    y += ROW * len(rows(figure, width - LEFT)) + 8
    tops, memory_tops = [], []
    for _ in figure.panels:
        tops.append(y + HEADER)
        y = tops[-1] + ranks * (lane + GAP)
    for _ in figure.memory:
        memory_tops.append(y + HEADER + 4)
        y = memory_tops[-1] + ranks * (row + GAP)
    axis = y + 2
    return Layout(
        width=width,
        legend=legend,
        lane=lane,
        row=row,
        tops=tuple(tops),
        memory_tops=tuple(memory_tops),
        axis=axis,
        height=axis + AXIS,
        span=figure.span,
    )
