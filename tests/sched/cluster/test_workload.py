"""Workloads: moments of what is drawn, exact replays, laws of scaling, cutting and joining."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sched.workload import (
    FunctionCounts,
    Workload,
    gamma_arrivals,
    gamma_workload,
    markov_arrivals,
    markov_workload,
    merge,
    poisson_workload,
    power_law_rates,
    read_function_counts,
    read_request_log,
    refit,
    stationary_shares,
)

seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, num_models: int = 3, cv: float = 2.0, duration_s: float = 20.0) -> Workload:
    rng = np.random.default_rng(seed)
    made = gamma_workload(power_law_rates(num_models, 10.0), cv, duration_s, rng)
    lengths = rng.integers(1, 100, (2, made.num_requests))
    return made.with_slo(float(rng.random())).with_lengths(lengths[0], lengths[1])


def same(one: Workload, other: Workload, clock: float = 0.0) -> None:
    assert one.models == other.models
    np.testing.assert_allclose(one.arrival_s, other.arrival_s, rtol=0, atol=clock)
    assert one.duration_s == pytest.approx(other.duration_s, abs=clock)
    for name in ("model", "slo_s", "tpot_s", "prompt_len", "output_len"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("duration_s", [0.5, 40.0])
def test_gamma_arrivals_have_the_rate_and_the_cv(cv: float, duration_s: float) -> None:
    rng = np.random.default_rng(1)
    runs = [gamma_arrivals(5.0, cv, duration_s, rng) for _ in range(1500)]
    counts = np.array([len(run) for run in runs])
    spread = counts.std() / len(counts) ** 0.5
    assert abs(counts.mean() - 5 * duration_s) <= 4 * spread + 1e-9, "stationary from the start"
    assert all(np.all(np.diff(run) >= 0) and run.min(initial=0) >= 0 for run in runs)
    assert max(run.max(initial=0) for run in runs) < duration_s
    if duration_s > 1:
        long = gamma_arrivals(100.0, cv, 3000.0, rng)
        gaps = np.diff(long)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-9)


def test_a_cv_of_one_is_the_poisson_process() -> None:
    rng = np.random.default_rng(2)
    counts = [len(gamma_arrivals(8.0, 1.0, 1.0, rng)) for _ in range(8000)]
    assert np.mean(counts) == pytest.approx(8, rel=0.02)
    assert np.var(counts) == pytest.approx(8, rel=0.08)


def test_markov_arrivals_spend_their_time_as_they_should() -> None:
    rng = np.random.default_rng(3)
    counts = [len(markov_arrivals([1.0, 20.0], [3.0, 1.0], 10.0, rng)) for _ in range(1500)]
    mean = 10 * (0.75 * 1 + 0.25 * 20)
    assert np.mean(counts) == pytest.approx(mean, rel=0.05)
    assert np.var(counts) > 3 * mean, "burstier than Poisson"
    jump = [[0, 1, 0], [0.5, 0, 0.5], [1, 0, 0]]
    assert stationary_shares([1, 1, 2], jump) == pytest.approx([2 / 6, 2 / 6, 2 / 6])
    with pytest.raises(ValueError, match="rows of chances"):
        markov_arrivals([1, 2], [1, 1], 1.0, rng, [[0, 1], [0.5, 0.5]])


@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_power_law(exponent: float) -> None:
    rates = power_law_rates(9, 7.0, exponent)
    assert rates.sum() == pytest.approx(7)
    assert rates[0] / rates[-1] == pytest.approx(9**exponent)


@given(seeds, st.floats(0, 25), st.floats(0, 25))
def test_cuts_and_joins_give_the_whole_back(seed: int, one: float, other: float) -> None:
    whole, (low, high) = draw(seed), sorted((one, other))
    end = whole.duration_s + 1
    parts = [whole.slice(0, low), whole.slice(low, high), whole.slice(high, max(high, end))]
    assert sum(part.num_requests for part in parts) == whole.num_requests
    moved = [part.delayed(start) for part, start in zip(parts, (0, low, high), strict=True)]
    kept = [part for part in moved if part.duration_s <= whole.duration_s]
    same(merge([draw(seed).slice(0, 0), *kept]), whole, clock=1e-9)


@given(seeds)
def test_joining_commutes_up_to_names(seed: int) -> None:
    one, other = draw(seed), draw(seed + 1, num_models=2)
    both = merge([one, other])
    assert both.num_requests == one.num_requests + other.num_requests
    counts = one.requests_by_model()
    counts[:2] += other.requests_by_model()
    np.testing.assert_array_equal(both.requests_by_model(), counts)
    np.testing.assert_array_equal(both.arrival_s, merge([other, one]).arrival_s)
    same(one.follow(other).slice(0, one.duration_s), one)


@given(seeds, st.floats(0.1, 10))
def test_a_faster_clock_scales_rates_and_keeps_cvs(seed: int, factor: float) -> None:
    one = draw(seed)
    quick = one.faster(factor)
    np.testing.assert_allclose(quick.rates(), one.rates() * factor)
    np.testing.assert_array_equal(quick.requests_by_model(), one.requests_by_model())
    assert quick.cv() == pytest.approx(one.cv())
    same(quick.faster(1 / factor), one, clock=1e-9)


@given(st.integers(1, 4), st.integers(1, 6), seeds)
def test_replayed_counts_are_exact(num_functions: int, num_minutes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 6, (num_functions, num_minutes))
    counts = FunctionCounts(tuple("abcdef"[:num_functions]), table)
    replayed = counts.replay(rng)
    np.testing.assert_array_equal(replayed.counts(60.0), table)
    assert replayed.duration_s == 60 * num_minutes
    dealt = counts.striped(["x", "y"])
    np.testing.assert_array_equal(dealt.counts[0], table[::2].sum(0))
    assert dealt.counts.sum() == table.sum()
    np.testing.assert_array_equal(counts.between(1, 3).counts, table[:, 1:3])


def test_refitting_keeps_rates_by_window_and_scales_them() -> None:
    rng = np.random.default_rng(5)
    table = np.array([[600, 60, 0], [30, 300, 900]])
    base = FunctionCounts(("a", "b"), table).replay(rng).with_slo({"a": 1.0, "b": 2.0})
    runs = [refit(base, 60.0, rng, rate_scale=2.0, cv_scale=3.0) for _ in range(30)]
    mean = np.mean([run.counts(60.0) for run in runs], axis=0)
    assert mean[0, 2] == 0, "a window without arrivals stays without"
    np.testing.assert_allclose(mean[mean > 0], 2 * table[table > 0], rtol=0.35)
    assert mean.sum() == pytest.approx(2 * table.sum(), rel=0.05)
    for run in runs:
        np.testing.assert_array_equal(run.slo_s, np.where(run.model == 0, 1.0, 2.0))
    long = gamma_workload([50.0], 2.0, 400.0, rng)
    assert refit(long, 400.0, rng, cv_scale=2.0).cv() == pytest.approx(4, rel=0.15)
    assert refit(long, 400.0, rng, rate_scale=0.0).num_requests == 0


def test_limits_and_lengths_of_others() -> None:
    rng = np.random.default_rng(6)
    made = poisson_workload([5.0, 5.0], 20.0, rng, ["a", "b"])
    assert np.isinf(made.deadline_s).all()
    limited = made.with_slo({"a": 0.5, "b": 2.0}, 0.1)
    np.testing.assert_array_equal(limited.slo_s, np.where(limited.model == 0, 0.5, 2.0))
    with pytest.raises(ValueError, match="limits: expected one for each model"):
        made.with_slo({"a": 0.5})
    log = Workload.of(["m"], [0, 1], prompt_len=[10, 20], output_len=[1, 2])
    drawn = made.lengths_of(log, rng)
    pairs = set(zip(drawn.prompt_len.tolist(), drawn.output_len.tolist(), strict=True))
    assert pairs == {(10, 1), (20, 2)}
    assert markov_workload([[1.0, 9.0]] * 2, [1.0, 1.0], 50.0, rng).num_requests > 100


FUNCTIONS = "HashOwner,HashFunction,minute_2,minute_10,minute_1\nx,a,1,0,4\nx,b,0,,7\ny,a,0,2,0\n"
LOG = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:46.6805901,1,2\n"
)


def test_function_counts_are_read_in_order_of_minutes(tmp_path: Path) -> None:
    path = tmp_path / "functions.csv"
    path.write_text(FUNCTIONS)
    counts = read_function_counts(path)
    assert counts.names == ("a", "b", "a#2")
    assert counts.counts.tolist() == [[4, 1, 0], [7, 0, 0], [0, 0, 2]]
    path.write_text("who,1,2\nx,3,4\n")
    assert read_function_counts(path).replay(np.random.default_rng(0)).models == ("x",)
    for wrong in ("many", "-1", "nan", "1e300"):
        path.write_text(FUNCTIONS.replace("4\n", f"{wrong}\n"))
        with pytest.raises(ValueError, match="line 2: expected a name and counts"):
            read_function_counts(path)
    path.write_text("1,2,HashFunction\n3,4,x\n\n5,6,y\n")
    assert read_function_counts(path).names == ("x", "y")
    path.write_text("1,2,HashFunction\n3,4,x\n\n5,6\n")
    with pytest.raises(ValueError, match="line 4: expected a name and counts"):
        read_function_counts(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="line 1: expected columns minute_1"):
        read_function_counts(path)


@pytest.mark.parametrize("read", [read_request_log, read_function_counts])
@pytest.mark.parametrize("more", [b"\xff", b"9" * 200_000], ids=["bytes", "long"])
def test_what_is_no_csv_is_refused_with_its_name(tmp_path: Path, read, more: bytes) -> None:
    path = tmp_path / "log.csv"
    head = "TIMESTAMP,ContextTokens,GeneratedTokens,1\n"
    path.write_bytes(b"\xef\xbb\xbf" + head.encode() + b"1,2,3,4\n")
    read(path)  # a mark of the byte order is no part of the first heading
    path.write_bytes(head.encode() + more)
    with pytest.raises(ValueError, match=r"log\.csv: expected CSV in UTF-8"):
        read(path)


def test_a_log_is_replayed_exactly(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    log = read_request_log(path)
    assert log.arrival_s.tolist() == [0.0, 1e-7, 4.314579]
    assert log.prompt_len.tolist() == [374, 1, 396]
    assert log.output_len.tolist() == [44, 2, 109]
    path.write_text("at,in,out,who\n5.5,1,2,b\n4.0,3,4,a\n")
    named = read_request_log(path, time="at", prompt="in", output="out", model="who")
    assert named.models == ("b", "a")
    assert named.arrival_s.tolist() == [0.0, 1.5]
    assert named.model.tolist() == [1, 0]
    path.write_text("at,in,out,who\n5.5,1,2,b\n4.0,3,4\n")
    with pytest.raises(ValueError, match=r"line 3: .* model: expected a name, got None"):
        read_request_log(path, time="at", prompt="in", output="out", model="who")
    with pytest.raises(ValueError, match="line 1: expected the headings"):
        read_request_log(path)
    for old, new in (
        ("374", "many"),
        ("374", "-1"),
        ("374", "9" * 20),
        ("2023-11-16 18:15:50", "NaT"),
        ("2023-11-16 18:15:50", "today"),
        ("2023-11-16 18:15:50", ""),
    ):
        path.write_text(LOG.replace(old, new))
        with pytest.raises(ValueError, match=r"line [23]: expected a moment"):
            read_request_log(path)
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\ninf,1,2\n")
    with pytest.raises(ValueError, match="line 2: expected a moment"):
        read_request_log(path)
    path.write_text(LOG.splitlines()[0])
    assert read_request_log(path).num_requests == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arrival_s": np.array([1.0, 0.0])}, "arrival_s"),
        ({"arrival_s": np.array([-1.0, 0.0])}, "arrival_s"),
        ({"model": np.array([0, 1], np.int32)}, "model"),
        ({"slo_s": np.array([np.nan, 1])}, "slo_s"),
        ({"prompt_len": np.array([1], np.int32)}, "prompt_len"),
        ({"duration_s": 0.5}, "duration_s"),
        ({"models": ("a", "a")}, "models"),
    ],
)
def test_what_is_no_workload(change: dict, says: str) -> None:
    good = Workload.of(["a"], [0.0, 1.0])
    parts = {field: getattr(good, field) for field in good.__dataclass_fields__}
    with pytest.raises(ValueError, match=f"^{says}: expected"):
        Workload(**parts | change)
