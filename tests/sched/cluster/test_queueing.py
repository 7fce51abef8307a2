"""The simulator against queueing theory, and the theory against its published tables."""

from fractions import Fraction

import pytest

from benches.queueing import (
    APART,
    LOADS,
    PIPELINE,
    largest_overhead,
    mean_latency_s,
    workloads,
)
from blocks.sched.cluster_sim.queueing import (
    apart_latency_s,
    largest_communication_overhead,
    largest_uneven_overhead,
    md1_latency_s,
    pipeline_latency_s,
)

ALPHA = (1.0128, 1.0331, 1.0692, 1.1047, 1.1315, 1.1365, 1.1111, 1.0610, 1.0249)
BETA = (1.3993, 1.3757, 1.3333, 1.2868, 1.2361, 1.1813, 1.1231, 1.0623, 1.0250)
SIMPLE = (1.0263, 1.0714, 1.1667, 1.3000, 1.5000, 1.8333, 2.5000, 4.5000, 10.5)
PIPE = (1.0132, 1.0357, 1.0833, 1.1500, 1.2500, 1.4167, 1.7500, 2.7500, 5.75)


def test_published_tables() -> None:
    for load, alpha, beta, simple, pipe in zip(LOADS, ALPHA, BETA, SIMPLE, PIPE, strict=True):
        assert largest_communication_overhead(load) == pytest.approx(alpha, abs=6e-5)
        assert largest_uneven_overhead(load) == pytest.approx(beta, abs=6e-5)
        assert apart_latency_s(load, 1.0, 0.5) == pytest.approx(simple, abs=6e-5)
        assert pipeline_latency_s(load, 1.0, 0.5) == pytest.approx(pipe, abs=6e-5)


@pytest.mark.parametrize("load", LOADS)
def test_overheads_solve_their_equations(load: float) -> None:
    simple = apart_latency_s(load, 1.0, 0.5)
    alpha, beta = largest_communication_overhead(load), largest_uneven_overhead(load)
    assert pipeline_latency_s(load, alpha, alpha / 2) == pytest.approx(simple, rel=1e-9)
    assert pipeline_latency_s(load, 1.0, beta / 2) == pytest.approx(simple, rel=1e-9)


def test_fractions_stay_exact() -> None:
    half = Fraction(1, 2)
    assert apart_latency_s(Fraction(1), Fraction(1), half) == Fraction(3, 2)
    assert pipeline_latency_s(Fraction(1), Fraction(1), half) == Fraction(5, 4)
    with pytest.raises(ValueError, match="below 1, or queues grow"):
        md1_latency_s(Fraction(2), half)


@pytest.mark.parametrize("load", [0.5, 1.0, 1.5])
def test_simulated_means_are_those_of_the_theory(load: float) -> None:
    (even,) = workloads(load, 0.5, 1_000_000)
    (skewed,) = workloads(load, 0.4, 1_000_000)
    cases = [
        (PIPELINE, [0.5, 0.5], even, pipeline_latency_s(load, 1.0, 0.5)),
        (PIPELINE, [0.3, 0.6], even, pipeline_latency_s(load, 0.9, 0.6)),
        (APART, [1.0], even, apart_latency_s(load, 1.0, 0.5)),
        (APART, [1.0], skewed, apart_latency_s(load, 1.0, 0.4)),
    ]
    for placement, stage_s, workload, exact in cases:
        assert mean_latency_s(placement, stage_s, workload) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("uneven", [False, True])
def test_simulated_largest_overheads_are_those_of_the_theory(uneven: bool) -> None:
    formula = largest_uneven_overhead if uneven else largest_communication_overhead
    assert largest_overhead(1.0, uneven, 300_000) == pytest.approx(formula(1.0), rel=0.01)
