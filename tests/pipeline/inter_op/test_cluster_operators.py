"""Operators to layers against every cut there is."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import OperatorClusters, Value, cluster_operators
from tests.pipeline import brute_force


@st.composite
def graphs(draw):
    """FLOPs, heavy operators and values, whole numbers all."""
    count = draw(st.integers(1, 9))
    flops = draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    heavy = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    values = []
    for producer in range(count - 1):
        later = st.sets(st.integers(producer + 1, count - 1), max_size=3)
        values.append(Value(producer, sorted(draw(later)), draw(st.integers(0, 9))))
    return flops, heavy, values


def entering(values, first, stop) -> int:
    """Bytes from outside, each value once."""
    return sum(
        value.num_bytes
        for value in values
        if value.producer < first and any(first <= c < stop for c in value.consumers)
    )


@given(graphs(), st.data(), st.sampled_from([0, 0.5, 1, 3]), st.sampled_from([0, 1, 2]))
def test_equals_brute_force(graph, data, imbalance, min_heavy):
    flops, heavy, values = graph
    num_layers = data.draw(st.integers(1, len(flops)))
    limit = (1 + imbalance) * sum(flops) / num_layers * (1 + 1e-12)
    needed = min(min_heavy, sum(heavy) // num_layers)
    rated = {}
    for bounds in brute_force.every_bounds(len(flops), 1):
        spans = list(itertools.pairwise(bounds))
        work = [sum(flops[i:j]) for i, j in spans]
        enough = all(sum(heavy[i:j]) >= needed for i, j in spans)
        if len(spans) == num_layers and max(work) <= limit and enough:
            each = [entering(values, i, j) for i, j in spans]
            rated[bounds] = (max(each), sum(each), sum(x * x for x in work))
    options = {"imbalance": imbalance, "is_heavy": heavy, "min_heavy": min_heavy}
    if not rated:
        with pytest.raises(ValueError, match="imbalance: expected at least"):
            cluster_operators(flops, values, num_layers, **options)
        return
    found = cluster_operators(flops, values, num_layers, **options)
    spans = list(itertools.pairwise(found.bounds))
    assert found.entering_bytes == tuple(entering(values, i, j) for i, j in spans)
    assert found.flops == tuple(sum(flops[i:j]) for i, j in spans)
    assert rated[found.bounds] == min(rated.values())
    assert OperatorClusters.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert [found.layer_of(n) for n in range(len(flops))] == [
        layer for layer, (i, j) in enumerate(spans) for _ in range(i, j)
    ]


def test_the_largest_may_be_a_little_above_the_least_where_the_sum_is_less():
    sizes = [100_000, 100_001, 100_000, 3]
    values = [Value(n, (n + 1,), size) for n, size in enumerate(sizes)]
    exact, loose = (
        cluster_operators([1] * 5, values, 3, tie=tie, imbalance=0.2) for tie in (0, 1e-4)
    )
    assert exact.bounds == (0, 1, 3, 5), "100,000 and 100,000 come in"
    assert loose.bounds == (0, 2, 4, 5), "100,001 and 3"


def test_a_limit_that_cannot_be_kept_says_what_can():
    with pytest.raises(ValueError, match=r"imbalance: expected at least 1 for 2 layers, got 0.5"):
        cluster_operators([0, 10, 0], [], 2)
    assert cluster_operators([0, 10, 0], [], 2, imbalance=1).num_layers == 2
    message = r"imbalance: expected at least 0\.3333 for 2 layers, got 0"
    with pytest.raises(ValueError, match=message):
        cluster_operators([1, 1, 1], [], 2, is_heavy=[False, True, True], imbalance=0)
    with pytest.raises(ValueError, match="consumer of a value: expected an operator after 1"):
        cluster_operators([1, 1, 1], [Value(1, (0,), 4)], 2)


def test_a_thousand_operators():
    """Forty operators a block; between blocks one value, inside them three."""
    values = []
    for n in range(1199):
        inside = [n + d for d in (1, 2, 3) if (n + d) // 40 == n // 40]
        values.append(Value(n, inside or [n + 1], 10))
    found = cluster_operators([1] * 1200, values, 6)
    assert all(bound % 40 == 0 for bound in found.bounds)
    assert max(found.entering_bytes) == 10
