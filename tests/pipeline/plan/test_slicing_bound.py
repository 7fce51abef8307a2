"""The bound over all cuts: below what any cut in any order comes to."""

import itertools
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import CostSurface, SliceTime
from blocks.pipeline.plan.bound import order_bound
from blocks.pipeline.plan.candidates import every_slicing
from blocks.pipeline.plan.mode import Mode
from blocks.pipeline.plan.order_search import search_order
from blocks.pipeline.plan.plan_pipeline import A_BYTE_PER_TOKEN
from blocks.pipeline.plan.slicing_bound import slicing_bound
from blocks.pipeline.plan.step_costs import step_costs


def some_time(random: Random) -> SliceTime:
    """Any terms, the diagonal cheaper or dearer than half of what is off it."""
    names = ("fixed", "per_token", "per_floor", "per_prefix", "per_pair", "per_square")
    terms = {name: random.choice([0.0, random.random()]) for name in names}
    return SliceTime(**terms, floor=4)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(3, 8),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_no_cut_is_faster(
    num_ranks: int,
    num_sequences: int,
    num_chunks: int,
    seq_len: int,
    granularity: int,
    splits: bool,
    alike: bool,
    seed: int,
) -> None:
    random = Random(seed)
    one = [
        CostSurface(
            some_time(random),
            some_time(random),
            some_time(random),
            bytes_per_token=1,
            latency_s=random.random(),
            seconds_per_byte=random.random(),
        )
        for _ in range(num_ranks)
    ]
    surfaces = one[:1] * num_ranks if alike else one
    cuts = list(every_slicing(seq_len, granularity))
    bound = slicing_bound(
        surfaces,
        seq_len,
        num_sequences,
        sorted({len(bounds) - 1 for bounds in cuts}),
        granularity=granularity,
        num_chunks=num_chunks,
        splits_weights=splits,
    )
    for bounds in random.sample(cuts, min(3, len(cuts))):
        costs = step_costs(surfaces, A_BYTE_PER_TOKEN, bounds, Mode(num_chunks, splits))
        order = search_order(costs, num_sequences, float("inf"), effort=500)
        assert order is not None
        assert bound <= order.makespan_s * (1 + 1e-12)
        assert order_bound(costs, num_sequences, float("inf")) <= order.makespan_s * (1 + 1e-12)


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_work_of_a_cut_is_bounded(
    num_slices: int, seq_len: int, granularity: int, seed: int
) -> None:
    random = Random(seed)
    times = [some_time(random) for _ in range(3)]
    cells = range(granularity, seq_len, granularity)
    inner = sorted(random.sample(cells, min(num_slices - 1, len(cells))))
    bounds = [0, *inner, seq_len]
    work = sum(t(b - a, a) for t in times for a, b in itertools.pairwise(bounds))
    bound = slicing_bound(
        [CostSurface(times[0], times[1], times[2])],
        seq_len,
        1,
        [len(bounds) - 1],
        granularity=granularity,
    )
    assert bound <= work * (1 + 1e-12)
