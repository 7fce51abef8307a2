"""Cost surfaces: exact, never negative, fitted with their residual told, and read back."""

import itertools
import json
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.pipeline import (
    CostSurface,
    Kind,
    Sample,
    SliceTime,
    equal_flop_slices,
    fit_cost,
    flop_cost,
    unit_cost,
)
from blocks.pipeline.fit_cost import non_negative_least_squares

coefficient = st.one_of(st.just(0), st.fractions(0, 1000, max_denominator=64))
times = st.builds(
    SliceTime,
    fixed=coefficient,
    per_token=coefficient,
    per_floor=coefficient,
    floor=st.sampled_from([0, 16, 100]),
    per_prefix=coefficient,
    per_pair=coefficient,
    per_square=coefficient,
)
GRID = [(n, c) for n in (8, 16, 48, 64, 128, 256, 512, 1024) for c in (0, 64, 512, 1536)]


def sampled(forward: SliceTime, backward: SliceTime, weight: SliceTime, noise: float = 0.0):
    rng = random.Random(1)

    def seconds(time: SliceTime, n: int, c: int) -> float:
        return float(time(n, c)) * (1 + noise * rng.uniform(-1, 1))

    return [
        Sample(n, c, seconds(forward, n, c), seconds(backward, n, c), seconds(weight, n, c), 64 * n)
        for n, c in GRID
    ]


@given(times, st.integers(1, 500), st.integers(0, 500), st.integers(1, 4))
def test_times_are_exact_and_never_fall(time, num_tokens, start, num_rows):
    here = time(num_tokens, start, num_rows)
    assert isinstance(here, int | Fraction)
    assert 0 <= here <= time(num_tokens + 1, start, num_rows)
    assert here <= time(num_tokens, start + 1, num_rows)
    assert here <= time(num_tokens, start, num_rows + 1)


@given(times, times)
def test_arrays_give_what_numbers_give(one, two):
    lengths, starts = np.arange(1, 200, 7), np.arange(0, 2900, 100)
    surface = CostSurface(one, two, SliceTime(), 4, 1, Fraction(1, 8))
    found = surface.as_float()(lengths, starts)
    wanted = [float(surface(n, c)) for n, c in zip(lengths.tolist(), starts.tolist(), strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@given(times, times, times, st.integers(1, 300), st.integers(0, 300))
def test_kinds_add_up(forward, backward, weight, num_tokens, start):
    surface = CostSurface(forward, backward, weight, 8, Fraction(1, 2), Fraction(1, 4))
    seconds = {kind: surface.seconds(kind, num_tokens, start) for kind in Kind if kind.computes}
    assert seconds[Kind.RECOMPUTE] == seconds[Kind.FORWARD]
    assert seconds[Kind.FULL_BACKWARD] == seconds[Kind.BACKWARD] + seconds[Kind.WEIGHT]
    hop = Fraction(1, 2) + 2 * num_tokens
    assert surface.transfer_seconds(num_tokens) == hop
    compute = seconds[Kind.FORWARD] + seconds[Kind.FULL_BACKWARD]
    assert surface(num_tokens, start) == compute + 2 * hop
    assert surface.scaled(3)(num_tokens, start) == 3 * compute + 2 * hop
    with pytest.raises(ValueError, match="transfers take transfer_seconds"):
        surface.seconds(Kind.SEND_FORWARD, num_tokens, start)


@given(times, times, st.integers(1, 300), st.integers(0, 300))
def test_sums_of_times(one, two, num_tokens, start):
    if one.per_floor and two.per_floor and one.floor != two.floor:
        with pytest.raises(ValueError, match="one floor"):
            _ = one + two
        return
    both = one + two
    assert both(num_tokens, start) == one(num_tokens, start) + two(num_tokens, start)


@given(times, times)
def test_surfaces_travel_as_json(one, two):
    surface = CostSurface(one, two, SliceTime(), Fraction(1, 3), 2, 0.5)
    assert CostSurface.from_json(json.loads(json.dumps(surface.to_json()))) == surface


def test_fitted_surfaces_travel_as_json():
    time = SliceTime(fixed=1e-4, per_token=1e-6)
    surface = fit_cost(sampled(time, time, time, noise=0.01))
    assert surface.residual is not None
    assert CostSurface.from_json(json.loads(json.dumps(surface.to_json()))) == surface


plain = st.builds(
    SliceTime,
    fixed=st.sampled_from([1e-4, 3e-3]),
    per_token=st.sampled_from([1e-6, 1e-5]),
    per_floor=st.sampled_from([0.0, 1e-5]),
    floor=st.sampled_from([64, 128, 256]),
    per_prefix=st.sampled_from([0.0, 1e-7]),
    per_pair=st.sampled_from([0.0, 1e-9]),
    per_square=st.sampled_from([0.0, 1e-9]),
)


@settings(max_examples=12)
@given(plain, plain, plain)
def test_a_surface_is_found_again_from_its_own_times(forward, backward, weight):
    surface = fit_cost(sampled(forward, backward, weight))
    assert surface.residual is not None
    assert surface.residual.max_relative < 1e-6
    assert surface.bytes_per_token == pytest.approx(64)
    for kind, time in zip("FBW", (forward, backward, weight), strict=True):
        for n, c in ((24, 0), (700, 900), (96, 40)):
            assert surface.seconds(Kind(kind), n, c) == pytest.approx(time(n, c), rel=1e-5)


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_residual_tells_the_noise(noise):
    time = SliceTime(fixed=1e-4, per_floor=2e-6, floor=128, per_pair=1e-9, per_square=5e-10)
    samples = sampled(time, time, time, noise)
    surface = fit_cost(samples)
    assert surface.residual is not None
    errors = {
        (kind.value, s.num_tokens, s.start): surface.seconds(kind, s.num_tokens, s.start) / s[k] - 1
        for s in samples
        for kind, k in ((Kind.FORWARD, 2), (Kind.BACKWARD, 3), (Kind.WEIGHT, 4))
    }
    worst = max(errors, key=lambda at: abs(errors[at]))
    assert surface.residual.worst == worst
    assert surface.residual.max_relative == pytest.approx(abs(errors[worst]))
    rms = (sum(e * e for e in errors.values()) / len(errors)) ** 0.5
    assert surface.residual.rms_relative == pytest.approx(rms)
    assert noise / 3 < rms < noise
    assert abs(surface.forward(2048, 2048) / time(2048, 2048) - 1) < 2 * noise


@given(st.integers(0, 2**32))
def test_times_fitted_to_anything_are_positive_and_never_fall(seed):
    """Measurements that fall with length, as outliers do, are met by flat predictions."""
    rng = random.Random(seed)
    samples = [
        Sample(n, c, rng.random(), rng.random() * rng.choice([1e-3, 1.0]), 1e-4 * rng.random())
        for n in (8, 64, 256)
        for c in (0, 512)
    ]
    surface = fit_cost(samples, floors=(0, 64))
    for time in (surface.forward, surface.input_gradient, surface.weight_gradient):
        priced = [time(n, 64) for n in range(1, 600, 13)]
        assert min(priced) >= 0
        assert all(b >= a for a, b in itertools.pairwise(priced))


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 8))
def test_non_negative_least_squares_cannot_be_improved(seed, num_columns, num_rows):
    """Gradients vanish where weights are positive, and point out of the cone elsewhere."""
    rng = np.random.default_rng(seed)
    rows, target = rng.normal(size=(num_rows, num_columns)), rng.normal(size=num_rows)
    loss, weights = non_negative_least_squares(rows, target)
    assert (weights >= 0).all()
    miss = rows @ weights - target
    assert loss == pytest.approx(miss @ miss, abs=1e-9)
    gradient = rows.T @ miss
    assert (gradient >= -1e-6).all()
    assert abs(gradient @ weights) < 1e-6


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="per_pair of a slice's time: expected at least 0"):
        SliceTime(per_pair=-1)
    time = SliceTime(fixed=1, per_token=1)
    good = sampled(time, time, time)
    with pytest.raises(ValueError, match="at least 3 different slices, got 2"):
        fit_cost(good[:2] * 5)
    with pytest.raises(ValueError, match="some with a prefix"):
        fit_cost([sample for sample in good if sample.start == 0])
    with pytest.raises(ValueError, match="finite seconds"):
        fit_cost([*good, good[0]._replace(forward_s=float("nan"))])
    with pytest.raises(ValueError, match="the keys"):
        CostSurface.from_json({"forward": 1})


def test_flops_of_a_layer():
    """24 d² per token and 4 d per pair of query and key: 1 + 2 + ... on the diagonal."""
    d, n, c = 64, 10, 30
    cost = flop_cost(d, flops_per_s=1, num_layers=2, element_bytes=4)
    linear, attention = 2 * n * 24 * d * d, 2 * 4 * d * (n * c + n * (n + 1) // 2)
    assert cost.forward(n, c) == linear + attention
    assert cost.input_gradient(n, c) == linear + 2.5 * attention
    assert cost.weight_gradient(n, c) == linear
    assert cost.bytes_sent(n) == 4 * d * n
    llama = flop_cost(64, flops_per_s=1, kv_ratio=0.25, ffn_size=224, gated=True)
    assert llama.weight_gradient(1, 0) == 2 * (64 * 64 * 2.5 + 3 * 64 * 224)


def test_attention_share_of_a_layer():
    """alpha = T / (12 d + T): 14 % at 8k, 40 % at 32k for d = 4096."""
    cost = flop_cost(4096, flops_per_s=1)
    for seq_len, share in ((8192, 0.14), (32768, 0.40), (131072, 0.73)):
        whole = cost.forward(seq_len, 0)
        assert 1 - cost.weight_gradient(seq_len, 0) / whole == pytest.approx(share, abs=0.005)


@given(st.fractions(0, 1, max_denominator=16), st.integers(1, 10**6))
def test_unit_cost_is_one_forward(alpha, seq_len):
    cost = unit_cost(alpha, seq_len)
    assert cost.forward(seq_len, 0) == 1
    assert cost.input_gradient(seq_len, 0) == 1 - alpha + alpha * Fraction(5, 2)
    assert cost.weight_gradient(seq_len, 0) == 1 - alpha
    double = unit_cost(alpha, seq_len, input_gradient=(1, 1), weight_gradient=(1, 1))
    assert double.seconds(Kind.FULL_BACKWARD, seq_len, 0) == 2


def test_first_slice_of_equal_cost_is_five_times_the_last():
    """The published price of balance at alpha = 0.8 with 16 slices."""
    bounds = equal_flop_slices(0.8, 1 << 16, 16)
    assert bounds[1] / (bounds[-1] - bounds[-2]) == pytest.approx(5, abs=0.5)
