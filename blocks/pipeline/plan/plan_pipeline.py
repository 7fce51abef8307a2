"""``plan_pipeline``: slices, order, recomputation and memory of a step, chosen together.

Needs numpy, no torch.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from blocks._checks import check, check_count, check_positive, fail
from blocks.pipeline.cost import CostSurface
from blocks.pipeline.memory import MemorySizes
from blocks.pipeline.plan.bound import order_bound
from blocks.pipeline.plan.candidates import CUTS, slicings
from blocks.pipeline.plan.explain import explain
from blocks.pipeline.plan.mode import Mode
from blocks.pipeline.plan.order_search import EFFORT, OrderSearch
from blocks.pipeline.plan.pipeline_plan import PipelinePlan
from blocks.pipeline.plan.slicing_bound import slicing_bound
from blocks.pipeline.plan.starts import NUM_LIKELY, serial_peak
from blocks.pipeline.plan.step_costs import StepCosts, step_costs
from blocks.pipeline.plan.step_graph import StepGraph
from blocks.pipeline.plan.trials import Order
from blocks.pipeline.schedule import Schedule

NUM_SLICES = (1, 2, 4, 8, 16, 32, 64)
A_BYTE_PER_TOKEN = MemorySizes(activations=lambda stage, num_tokens, start: num_tokens)
NEARLY = 0.005
MAX_FINISHED = 2
"""Candidates whose best order is timed in full."""


@dataclasses.dataclass(frozen=True)
class _Candidate:
    mode: Mode
    bounds: tuple[int, ...]
    cut: str
    costs: StepCosts
    order_bound_s: float
    likely_s: float


def plan_pipeline(
    cost: CostSurface | Sequence[CostSurface],
    seq_len: int,
    num_sequences: int,
    num_ranks: int,
    *,
    sizes: MemorySizes = A_BYTE_PER_TOKEN,
    memory_cap: int | float | None = None,
    whole_prefix: bool = False,
    granularity: int = 8,
    num_slices: int | Sequence[int] | None = None,
    cuts: Sequence[str] = CUTS,
    num_chunks: Sequence[int] = (1,),
    split_weights: Sequence[bool] = (False, True),
    recompute: bool = False,
    effort: int = EFFORT,
) -> PipelinePlan:
    """The fastest step found for ``num_sequences`` equally long sequences on a pipeline.

    Candidates are tried in the order of what they could come to at best (``order_bound``), and
    left out where that is no better than what was already found. ``effort`` bounds the search by
    counted actions, not by a clock, so equal arguments give equal plans.

    Args:
        cost: seconds of all layers of a rank; one surface for all ranks, or one for each.
        seq_len: tokens of every sequence.
        num_sequences: sequences of the step.
        num_ranks: depth of the pipeline.
        sizes: bytes of a slice on a rank with all its layers; their stage is the rank. By default
            a byte per token from forward to backward.
        memory_cap: bytes of these that no rank may exceed; None for no cap.
        whole_prefix: keys, values and their gradients are held for whole sequences.
        granularity: bounds of slices are multiples of it.
        num_slices: how many slices a sequence may have; by default powers of two up to 64.
        cuts: which slicings to try, of ``uniform`` lengths, ``equal_cost``, ``between`` the two,
            and the ``least_makespan`` of TeraPipe's program.
        num_chunks: how many stages a rank may have; its layers are cut evenly.
        split_weights: whether backwards may be whole, split in two, or both.
        recompute: whether ranks may recompute activations: all, none, or the first half.
        effort: actions that all searches together may walk through; the default plans 16 ranks
            and 128k tokens in about a second.

    Raises:
        ValueError: an argument out of range; no order that fits, with the least cap that does.
    """
    for name, value in (("seq_len", seq_len), ("num_sequences", num_sequences)):
        check_count(name, value)
    for name, value in (("num_ranks", num_ranks), ("granularity", granularity)):
        check_count(name, value)
    check_positive("memory_cap", memory_cap, "pass None for no cap")
    check_positive("effort", effort)
    check(set(cuts) <= set(CUTS) and bool(cuts), "cuts", f"some of {CUTS}", tuple(cuts))
    surfaces = [cost] * num_ranks if isinstance(cost, CostSurface) else list(cost)
    check(len(surfaces) == num_ranks, "cost", f"one or {num_ranks} surfaces", len(surfaces))
    floats = {id(surface): surface.as_float() for surface in surfaces}
    surfaces = [floats[id(surface)] for surface in surfaces]
    counts = _counts(num_slices, seq_len, granularity)
    cap = float("inf") if memory_cap is None else float(memory_cap)
    modes = list(_modes(num_chunks, split_weights, recompute, num_ranks))

    candidates = []
    slowest = max(surfaces, key=lambda surface: surface(seq_len, 0))
    cut_ways = slicings(
        slowest,
        seq_len,
        num_ranks,
        num_sequences,
        counts,
        granularity=granularity,
        cuts=cuts,
    )
    for mode, (bounds, cut) in itertools.product(modes, cut_ways.items()):
        costs = step_costs(surfaces, sizes, bounds, mode, whole_prefix=whole_prefix)
        bound, likely = (
            order_bound(costs, num_sequences, cap, likely=likely) for likely in (False, True)
        )
        candidates.append(_Candidate(mode, bounds, cut, costs, bound, likely))
    best = _choose(_in_turn(candidates), num_sequences, cap, effort)
    if best is None:
        enough = min(serial_peak(candidate.costs, num_sequences) for candidate in candidates)
        hint = "allow more memory, recomputation, or more ranks"
        raise fail("memory_cap", f"at least {enough:.6g} bytes", f"{cap:.6g}", hint)
    candidate, order = best
    lower = min(
        slicing_bound(
            surfaces,
            seq_len,
            num_sequences,
            counts,
            granularity=granularity,
            num_chunks=mode.num_chunks,
            splits_weights=mode.splits_weights,
        )
        for mode in modes
        if not mode.num_recomputing
    )
    plan = PipelinePlan(
        schedule=_schedule(candidate, order, num_sequences),
        bounds=candidate.bounds,
        recompute=_recomputing(candidate.costs),
        makespan_s=order.makespan_s,
        busy_s=tuple(num_sequences * candidate.costs.busy_s(rank) for rank in range(num_ranks)),
        order_bound_s=candidate.order_bound_s,
        lower_bound_s=lower,
        peak_bytes=order.peak_bytes,
        memory_cap=memory_cap,
        explanation="",
    )
    return dataclasses.replace(plan, explanation=explain(plan, candidate.cut, order.knobs))


def _counts(num_slices: int | Sequence[int] | None, seq_len: int, granularity: int) -> list[int]:
    most = -(-seq_len // granularity)
    if num_slices is None:
        return [count for count in NUM_SLICES if count <= most]
    counts = [num_slices] if isinstance(num_slices, int) else sorted(num_slices)
    inside = bool(counts) and all(1 <= count <= most for count in counts)
    check(inside, "num_slices", f"1 to {most} slices of {granularity} tokens", num_slices)
    return counts


def _modes(
    num_chunks: Sequence[int], split_weights: Sequence[bool], recompute: bool, num_ranks: int
) -> Iterator[Mode]:
    check(bool(num_chunks) and min(num_chunks) > 0, "num_chunks", "positive numbers", num_chunks)
    check(bool(split_weights), "split_weights", "True, False or both", split_weights)
    some = sorted({0, num_ranks // 2, num_ranks}) if recompute else [0]
    for chunks, split, recomputing in itertools.product(num_chunks, split_weights, some):
        yield Mode(chunks, split, recomputing)


def _in_turn(candidates: list[_Candidate]) -> list[_Candidate]:
    """The likely best of every mode, then the second of every mode, and so on.

    Of candidates that should come to nearly the same, those of fewer slices count as better.
    """
    least = min(candidate.likely_s for candidate in candidates)

    def merit(candidate: _Candidate) -> tuple[int, int]:
        return int((candidate.likely_s / least - 1) / NEARLY), candidate.costs.num_slices

    by_mode: dict[Mode, list[_Candidate]] = {}
    for candidate in sorted(candidates, key=merit):
        by_mode.setdefault(candidate.mode, []).append(candidate)
    turns = itertools.zip_longest(*by_mode.values())
    return [candidate for turn in turns for candidate in turn if candidate is not None]


def _choose(
    candidates: list[_Candidate], num_sequences: int, cap: float, effort: int
) -> tuple[_Candidate, Order] | None:
    """The best order found: briefly over all candidates, then at length over the best two."""
    searches: list[tuple[OrderSearch, _Candidate]] = []
    least, spent = float("inf"), 0
    for candidate in candidates:
        if candidate.order_bound_s >= least or (spent > effort / 2 and least < float("inf")):
            continue
        search = OrderSearch(candidate.costs, num_sequences, cap)
        search.look(NUM_LIKELY)
        spent += search.walked
        least = min(least, search.estimate_s)
        searches.append((search, candidate))
    searches.sort(key=lambda pair: pair[0].estimate_s)
    for search, _ in searches[:2]:
        share = max(0, effort - spent) // 2
        search.look_on(search.walked + share)
    searches.sort(key=lambda pair: pair[0].estimate_s)
    found = []
    for search, candidate in searches:
        best = min((order.makespan_s for _, order in found), default=float("inf"))
        if len(found) == MAX_FINISHED or search.estimate_s >= best < float("inf"):
            break
        order = search.finish(search.walked + effort // 8)
        if order is not None:
            found.append((candidate, order))
    return min(found, key=lambda pair: pair[1].makespan_s, default=None)


def _recomputing(costs: StepCosts) -> tuple[int, ...]:
    return tuple(stage for stage, row in enumerate(costs.recompute) if any(row))


def _schedule(candidate: _Candidate, order: Order, num_sequences: int) -> Schedule:
    costs = candidate.costs
    actions = StepGraph(costs, num_sequences).actions()
    return Schedule(
        name="planned",
        placement=tuple(stage % costs.num_ranks for stage in range(costs.num_stages)),
        num_slices=(costs.num_slices,) * num_sequences,
        programs=tuple(tuple([actions[n] for n in program]) for program in order.programs),
    )
