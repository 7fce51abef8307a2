"""Plans next to a plan, and what exchanging whole stages is for."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.pipeline import LayerSums, SubmeshShape
from blocks.pipeline.inter_op.makespans import makespans
from blocks.pipeline.inter_op.neighbours import neighbours
from blocks.pipeline.inter_op.priced import Priced


def priced_of(num_layers: int, hop_s: float = 0.0) -> Priced:
    """Every layer 1 s forward and 2 s back."""
    shapes = [SubmeshShape(1, 1), SubmeshShape(1, 2)]
    seconds = np.ones((num_layers, 2, 2))
    layers = {"forward_s": seconds, "backward_s": 2 * seconds}
    sums = LayerSums(shapes, ["a", "b"], layers, transfer=lambda *_: (hop_s, hop_s))
    return Priced(sums.at(range(num_layers + 1)), "one_f_one_b", 32, [float("inf")] * 2)


def plan_of(lengths, shapes=None, options=None):
    ends = [*itertools.accumulate(lengths, initial=0)]
    rest = zip(shapes or [0] * len(lengths), options or [0] * len(lengths), strict=True)
    return tuple((*span, m, o) for span, (m, o) in zip(itertools.pairwise(ends), rest, strict=True))


stage = st.tuples(st.integers(1, 4), st.integers(0, 1), st.integers(0, 1))


@settings(max_examples=30, deadline=None)
@given(st.lists(stage, min_size=1, max_size=5))
def test_they_are_plans_of_the_same_layers_and_devices(stages):
    lengths, shapes, options = (list(column) for column in zip(*stages, strict=True))
    plan = plan_of(lengths, shapes, options)
    found = list(neighbours(priced_of(sum(lengths)), plan))
    assert plan not in found
    for other in found:
        assert other[0][0] == 0
        assert other[-1][1] == sum(lengths)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(other))
        assert all(first < stop for first, stop, _, _ in other)
        assert sorted(m for _, _, m, _ in other) == sorted(shapes)
    for n, far in itertools.combinations(range(len(stages)), 2):
        order = [*stages]
        order[n], order[far] = stages[far], stages[n]
        if len(stages) == len({*stages}):
            assert plan_of(*(list(column) for column in zip(*order, strict=True))) in found


def test_slow_stages_apart_are_faster_than_side_by_side():
    """Transfers between two slow stages are part of what both wait for. Two of the stages are
    longer; no formula tells orders apart, exchanging two stages does."""
    priced, together = priced_of(14, hop_s=0.2), plan_of([2, 2, 3, 3, 2, 2])
    (before,) = makespans(priced, [together])
    found = {plan: makespans(priced, [plan])[0] for plan in neighbours(priced, together)}
    best = min(found, key=lambda plan: found[plan])
    assert found[best] < before
    lengths = [stop - first for first, stop, _, _ in best]
    assert sorted(lengths) == [2, 2, 2, 2, 3, 3]
    assert (3, 3) not in itertools.pairwise(lengths)
