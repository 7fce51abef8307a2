"""``occupancy``: how many requests every group has over time, and which were not served in time."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from blocks.pipeline.view.scale import ticks
from blocks.sched.cluster_sim import Event
from recipes.place.planning.task import AnyOutcome
from recipes.place.view.drawing import box, line, svg, text

Floats = npt.NDArray[np.float64]
NUM_BINS = 280
_LEFT, _WIDTH, _LANE, _GAP, _TOP, _MARKS = 96, 980, 44, 16, 22, 9


def in_group(outcome: AnyOutcome, group: int, edges_s: Floats) -> Floats:
    """Requests that a group has taken and not answered, on average between each two moments."""
    mine = (outcome.group == group) & outcome.finished
    passed = _passed(outcome.workload.arrival_s[mine], edges_s)
    gone = _passed(outcome.answered_s[mine], edges_s)
    return np.diff(passed - gone) / np.diff(edges_s)


def _passed(moments_s: Floats, edges_s: Floats) -> Floats:
    """Seconds since all moments before each edge, summed up."""
    ordered = np.sort(moments_s)
    before = np.searchsorted(ordered, edges_s)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    return before * edges_s - sums[before]


def occupancy(outcome: AnyOutcome, events: Sequence[Event] = ()) -> str:
    """A lane a group: requests in it over time, below it those that were not served in time, and
    hatched the time it was down. Requests that no group took have a lane of their own."""
    workload = outcome.workload
    span_s = max(workload.duration_s, 1e-9)
    edges_s = np.linspace(0, span_s, NUM_BINS + 1)
    num_groups = len(outcome.placement.groups)
    lanes = [in_group(outcome, at, edges_s) for at in range(num_groups)]
    missed = [
        np.histogram(workload.arrival_s[~outcome.met & (outcome.group == at)], edges_s)[0]
        for at in range(num_groups)
    ]
    nowhere = np.histogram(workload.arrival_s[outcome.group < 0], edges_s)[0]
    most = max(1.0, *(float(lane.max()) for lane in lanes)) if lanes else 1.0
    worst = max(1, *(int(lane.max()) for lane in missed), int(nowhere.max()))
    parts = [*_legend(most)]
    for at, lane in enumerate(lanes):
        top = _TOP + at * (_LANE + _GAP)
        parts.append(text(0, top + 20, f"group {at}"))
        parts.append(text(0, top + 34, str(outcome.placement.groups[at].configuration), "muted"))
        for start_s, stop_s in _down(events, at, span_s):
            x, wide = _x(start_s, span_s), _x(stop_s, span_s) - _x(start_s, span_s)
            tip = f"group {at} is down from {start_s:g} to {stop_s:g} s"
            parts.append(box(x, top, wide, _LANE + _MARKS, "url(#down)", tip))
        parts.append(_area(lane / most, top))
        parts.append(line(_LEFT, top + _LANE, _LEFT + _WIDTH, top + _LANE))
        parts += _marks(missed[at], worst, top + _LANE + 1)
    rows = num_groups
    if nowhere.any():
        top = _TOP + rows * (_LANE + _GAP)
        parts.append(text(0, top + 8, "no group"))
        parts += _marks(nowhere, worst, top)
        rows += 0.4
    bottom = _TOP + rows * (_LANE + _GAP)
    for moment_s in ticks(span_s, 10):
        x = _x(moment_s, span_s)
        parts.append(line(x, bottom - 4, x, bottom))
        parts.append(text(x, bottom + 12, f"{moment_s:g} s", "muted", "middle"))
    return svg(
        _LEFT + _WIDTH + 40, bottom + 18, [_HATCH, *parts], "requests in every group over time"
    )


_HATCH = (
    '<defs><pattern id="down" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="6" height="6" fill="var(--soft)"/>'
    '<line x1="0" y1="0" x2="0" y2="6" stroke="var(--muted)" stroke-width="1.4"/></pattern></defs>'
)


def _legend(most: float) -> Iterator[str]:
    yield box(_LEFT, 3, 11, 11, "var(--ours)", "", 'fill-opacity="0.65"')
    yield text(_LEFT + 16, 12, f"requests in the group, up to {most:.2g}", "muted")
    yield box(_LEFT + 320, 3, 3, 11, "var(--warn)")
    yield text(_LEFT + 328, 12, "not served in time", "muted")
    yield box(_LEFT + 470, 3, 11, 11, "url(#down)")
    yield text(_LEFT + 486, 12, "down", "muted")


def _x(moment_s: float, span_s: float) -> float:
    return _LEFT + min(moment_s / span_s, 1.0) * _WIDTH


def _area(lane: Floats, top: float) -> str:
    step = _WIDTH / len(lane)
    bottom = top + _LANE
    path = "".join(
        f"L{_LEFT + at * step:.1f} {bottom - share * _LANE:.1f}h{step:.2f}"
        for at, share in enumerate(lane.tolist())
    )
    shape = f"M{_LEFT} {bottom}{path}L{_LEFT + _WIDTH} {bottom}Z"
    return f'<path d="{shape}" fill="var(--ours)" fill-opacity="0.65"/>'


def _marks(counts: npt.NDArray[np.int64], worst: int, top: float) -> Iterator[str]:
    step = _WIDTH / len(counts)
    for at, count in enumerate(counts.tolist()):
        if count:
            tall = 2 + (_MARKS - 2) * count / worst
            yield box(_LEFT + at * step, top, max(step - 0.5, 1), tall, "var(--warn)", f"{count}")


def _down(events: Sequence[Event], group: int, span_s: float) -> Iterator[tuple[float, float]]:
    """When a group is down, as far as events say."""
    own = [e for e in events if e.group in (-1, group) and e.kind in ("down", "up")]
    since = 0.0 if own and own[0].kind == "up" else None
    for event in own:
        if event.kind == "down" and since is None:
            since = event.at_s
        elif event.kind == "up" and since is not None:
            yield since, event.at_s
            since = None
    if since is not None:
        yield since, max(since, span_s)
