"""``fitting_cuts``: stages that fit, cut wherever they have to be. Needs numpy, no torch."""

from collections.abc import Iterator, Sequence
from typing import Any

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.closed_formula import Plan
from blocks.pipeline.inter_op.cut_windows import CutWindows, Row
from blocks.pipeline.inter_op.layer_sums import LayerSums
from blocks.pipeline.inter_op.priced import Priced


def fitting_cuts(
    sums: LayerSums,
    schedule: str,
    num_microbatches: int,
    caps: Sequence[int | float],
    budget: Budget,
    max_stages: int,
) -> tuple[tuple[int, ...], Plan] | None:
    """Cuts of two or more stages that keep to the caps, and the stages by their indices; whatever
    their time.

    None where there are none; it may miss some where devices are of several kinds, where layers
    cannot run in some ways, or where what is needed beside the rest differs between layers.

    Args:
        sums, schedule, num_microbatches, caps, budget, max_stages: see ``every_cut``.
    """
    windows = CutWindows.of_several_stages(sums, schedule, num_microbatches, caps, budget)
    if not windows.rows:
        return None
    most, devices = windows.most_stages(max_stages, budget), sum(budget.counts.values())
    ends = [windows.fit(to_end) for to_end in range(1, most + 1)]
    firsts = list(earliest_layers(windows.rows, ends, devices))
    for depth in range(2, most + 1):
        for used in [devices] if budget.whole else range(devices, 0, -1):
            if firsts[depth][used] > 0:
                continue
            stages = _stages(windows.rows, ends, firsts, depth, used)
            if stages is None or not budget.is_enough(row.shape for _, row in stages):
                continue
            cuts = (*(first for first, _ in stages), sums.num_layers)
            plan = tuple((n, n + 1, row.shape, row.option) for n, (_, row) in enumerate(stages))
            priced = Priced(sums.at(cuts), schedule, num_microbatches, caps)
            if all(priced.fits(depth - n)[stage] for n, stage in enumerate(plan)):
                return cuts, plan
    return None


def earliest_layers(rows: Sequence[Row], every: Sequence[Any], devices: int) -> Iterator[Any]:
    """The earliest layer that stages come to from the end, ``[devices used]``, by their number from
    0; one more than there are layers where there are no such stages.

    It is found from the one that fewer stages on fewer devices come to: what begins later is no
    further. Stages may be empty.

    Args:
        every: by stages to the end the windows, see ``CutWindows.fit``.
    """
    import numpy as np

    num_layers = every[0].shape[1]
    nowhere = num_layers + 1
    first = np.full(devices + 1, nowhere)
    first[0] = num_layers
    yield first
    for ends in every:
        then = np.full(devices + 1, nowhere)
        for row, last in zip(rows, ends, strict=True):
            before = first[: devices + 1 - row.devices]
            reached = np.minimum(np.searchsorted(last, before), before)
            at = then[row.devices :]
            np.minimum(at, np.where(before < nowhere, reached, nowhere), out=at)
        first = then
        yield first


def _stages(
    rows: Sequence[Row], ends: Sequence[Any], firsts: Sequence[Any], depth: int, devices: int
) -> list[tuple[int, Row]] | None:
    """So many stages on so many devices, none of them empty: where each begins, and its row.

    A stage ends as early as those after it allow; they can begin later, too.
    """
    num_layers, k, found = ends[0].shape[1], 0, []
    for to_end in range(depth, 0, -1):
        after, latest = firsts[to_end - 1], num_layers - (to_end - 1)
        for row, last in zip(rows, ends[to_end - 1], strict=True):
            if row.devices <= devices:
                stop = max(k + 1, int(after[devices - row.devices]))
                if stop <= min(latest, int(last[k])):
                    break
        else:
            return None
        found.append((k, row))
        k, devices = stop, devices - row.devices
    return found
