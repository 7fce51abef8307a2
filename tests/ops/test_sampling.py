import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.ops import reference, sample
from blocks.ops._noise import uniform_noise

IMPLS = ["reference", "native", "triton"]
FAST = ["native", "triton"]


def draws(logits: torch.Tensor, num_draws: int, impl, **options) -> torch.Tensor:
    """Draws of one row at positions 0, 1, ...: int64 [num_draws]."""
    together = logits.expand(num_draws, -1)
    return sample(together, positions=torch.arange(num_draws), impl=impl, **options)


def chi_square(observed: torch.Tensor, probabilities: torch.Tensor) -> tuple[float, float]:
    """The statistic, and the 1e-4 quantile by Wilson and Hilferty's approximation."""
    expected = probabilities.double() * observed.sum()
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    freedom = len(probabilities) - 1
    spread = 2 / (9 * freedom)
    return statistic, freedom * (1 - spread + 3.719 * math.sqrt(spread)) ** 3


def test_noise_is_uniform_and_fine_near_zero() -> None:
    noise = uniform_noise(torch.tensor(5), torch.tensor(9), torch.arange(200_000))
    counts = torch.histc(noise, 50, 0, 1)
    statistic, limit = chi_square(counts, torch.full((50,), 1 / 50))
    assert statistic < limit
    assert 0 < noise.min() < 3e-5
    assert noise.max() < 1


@pytest.mark.parametrize("what", ["seed", "position", "token"])
def test_neighbouring_counters_are_uncorrelated(what: str) -> None:
    counter = torch.arange(100_000)
    zero = torch.zeros_like(counter)
    at = {"seed": (counter, zero, zero), "position": (zero, counter, zero)}.get(
        what, (zero, zero, counter)
    )
    noise = uniform_noise(*at).double() - 0.5
    for lag in (1, 2, 16):
        correlation = (noise[:-lag] * noise[lag:]).mean() * 12
        assert abs(correlation) < 4 / math.sqrt(len(noise)), (what, lag)


def test_noise_is_pinned() -> None:
    """A seed a user wrote down must give the same text after an upgrade."""
    noise = uniform_noise(torch.tensor([0, 1, -1]), torch.tensor([0, 7, 2**40]), torch.tensor(3))
    expected = [0.4801695644855499, 0.37245553731918335, 0.034243855625391006]
    assert torch.equal(noise, torch.tensor(expected))


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(impl, temperature: float) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, 1.0, 0.2, -0.7]])
    drawn = draws(logits, 30_000, impl, temperature=temperature, seeds=11)
    counts = torch.bincount(drawn, minlength=8)
    statistic, limit = chi_square(counts, (logits[0] / temperature).softmax(-1))
    assert statistic < limit, counts


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_draws_follow_the_softmax_of_what_is_kept(impl) -> None:
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5]])
    options = {"top_k": 6, "top_p": 0.9, "min_p": 0.1}
    drawn = draws(logits, 20_000, impl, **options, seeds=3)
    kept = logits[0, :4]  # top-k leaves 6, top-p 4 of those (0.910 of their mass), min-p all 4
    counts = torch.bincount(drawn, minlength=8)
    assert counts[4:].sum() == 0
    statistic, limit = chi_square(counts[:4], kept.softmax(-1))
    assert statistic < limit, counts


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_seeds_give_independent_draws(impl) -> None:
    """Draws of two seeds at the same positions pair up as products of the marginals."""
    logits = torch.tensor([[1.0, 0.0, 0.5]])
    first, second = (draws(logits, 20_000, impl, seeds=seed) for seed in (1, 2))
    pairs = torch.bincount(3 * first + second, minlength=9)
    p = logits[0].softmax(-1)
    statistic, limit = chi_square(pairs, torch.outer(p, p).flatten())
    assert statistic < limit


parameters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_k": st.sampled_from([0, 1, 2, 5, 40, 1000]),
        "top_p": st.sampled_from([1.0, 0.95, 0.6, 0.1, 1e-6]),
        "min_p": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    }
)


@pytest.mark.parametrize("impl", FAST)
@given(
    rows=st.lists(parameters, min_size=1, max_size=2),
    vocab_size=st.integers(1, 70),
    levels=st.sampled_from([3, 50]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 10_000),
)
def test_fast_draws_equal_the_sorting_reference(
    impl, rows: list[dict], vocab_size: int, levels: int, dtype: torch.dtype, seed: int
) -> None:
    """With few levels most tokens are tied, so thresholds fall among equals."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(rows), vocab_size)
    logits = torch.randint(0, levels, shape, generator=generator).to(dtype) / (levels / 8)
    logits[torch.rand(shape, generator=generator) < 0.05] = -torch.inf
    options = {name: [row[name] for row in rows] for name in rows[0]}
    options |= {"seeds": [seed + i for i in range(len(rows))], "positions": seed}
    expected = sample(logits, **options, impl="reference")
    assert torch.equal(sample(logits, **options, impl=impl), expected)


@given(
    rows=st.lists(parameters, min_size=1, max_size=2),
    vocab_size=st.integers(1, 40),
    levels=st.sampled_from([3, 50, 1000]),
    max_groups=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 10_000),
)
def test_the_kernel_with_many_tiles_and_few_groups(rows, vocab_size, levels, max_groups, seed):
    """Tiles of 8, groups of 4: top k in registers, and where they do not fit the whole row."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(rows), vocab_size)
    logits = torch.randint(0, levels, shape, generator=generator).float() / (levels / 8)
    logits[torch.rand(shape, generator=generator) < 0.1] = -torch.inf
    logits[torch.rand(shape, generator=generator) < 0.02] = torch.nan
    options = {name: [row[name] for row in rows] for name in rows[0]}
    options |= {"seeds": [seed + i for i in range(len(rows))], "positions": seed}
    expected = sample(logits, **options, impl="reference")
    small = {"TILE": 8, "GROUP": 4, "MAX_GROUPS": max_groups}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(f"blocks.ops.sampling.{name}", value)
        assert torch.equal(sample(logits, **options, impl="triton"), expected)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 50}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.9}, {"min_p": 0.05}]
)
def test_fast_draws_equal_the_reference_on_a_real_vocabulary(impl, options: dict) -> None:
    generator = torch.Generator().manual_seed(1)
    num_rows = 2 if impl == "triton" else 16
    logits = 2 * torch.randn(num_rows, 32_000, generator=generator)
    logits[0] *= 4  # one peaked row
    options = {**options, "seeds": list(range(num_rows)), "positions": 5, "temperature": 0.9}
    expected = sample(logits, **options, impl="reference")
    assert torch.equal(sample(logits, **options, impl=impl), expected)
    assert torch.equal(
        sample(logits.bfloat16(), **options, impl=impl),
        sample(logits.bfloat16(), **options, impl="reference"),
    )


@given(
    row=parameters,
    num_levels=st.integers(1, 20),
    vocab_size=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_the_kept_set_is_what_the_rules_say(
    row: dict, num_levels: int, vocab_size: int, seed: int
) -> None:
    """Against a plain Python reading of the rules, token by token."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, num_levels, (1, vocab_size), generator=generator).float() / 2
    temperature = row["temperature"] or 1.0
    tensors = [torch.tensor([row[n]]) for n in ("top_k", "top_p", "min_p")]
    kept = reference.kept_tokens(x, torch.tensor([temperature]), *tensors)[0].tolist()

    logits = x[0].tolist()
    top = max(logits)
    weight = [math.exp((logit - top) / temperature) for logit in logits]
    ordered = sorted(range(vocab_size), key=lambda t: -logits[t])
    if 0 < row["top_k"] < vocab_size:
        ordered = [t for t in ordered if logits[t] >= logits[ordered[row["top_k"] - 1]]]
    if row["top_p"] < 1:
        total, mass, last = sum(weight[t] for t in ordered), 0.0, 0
        while mass < row["top_p"] * total - 1e-9:
            mass += weight[ordered[last]]
            last += 1
        ordered = [t for t in ordered if logits[t] >= logits[ordered[last - 1]]]
    expected = {t for t in ordered if weight[t] >= row["min_p"] - 1e-9}
    assert {t for t in range(vocab_size) if kept[t]} == expected


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_draws_the_same_in_any_batch(impl) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 50, generator=generator)
    options = {
        "temperature": torch.tensor([0.0, 0.5, 1.0, 1.0, 2.0, 1.0, 0.7]),
        "top_k": torch.tensor([0, 0, 5, 0, 0, 20, 0]),
        "top_p": torch.tensor([1.0, 1.0, 0.9, 1.0, 0.5, 1.0, 0.3]),
        "seeds": torch.tensor([1, 2, 3, 4, 5, 6, 7]),
        "positions": torch.tensor([9, 8, 7, 6, 5, 4, 3]),
    }
    together = sample(logits, **options, impl=impl)
    shuffled = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    moved = {name: value[shuffled] for name, value in options.items()}
    assert torch.equal(sample(logits[shuffled], **moved, impl=impl), together[shuffled])
    for i in range(7):
        alone = {name: value[i : i + 1] for name, value in options.items()}
        assert torch.equal(sample(logits[i : i + 1], **alone, impl=impl), together[i : i + 1])


@pytest.mark.parametrize("impl", IMPLS)
def test_greedy_takes_the_lowest_id_among_equals(impl) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.0, -0.0, 0.0, 0.0], [-5.0, -5.0, -4.0, -4.0]])
    assert sample(logits, temperature=0.0, impl=impl).tolist() == [1, 0, 2]
    wide = torch.zeros(1, 3000)
    wide[0, [2999, 1700, 1701]] = 1.0
    assert sample(wide, temperature=0.0, impl=impl).tolist() == [1700]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-30])
def test_odd_logits(impl, temperature: float) -> None:
    inf, nan = torch.inf, torch.nan
    logits = torch.tensor(
        [
            [-inf, -inf, -inf],
            [nan, nan, nan],
            [nan, -inf, 2.0],
            [-inf, inf, 3.0],
            [-3e38, -3e38, 3e38],
            [-3e38, -inf, nan],
        ]
    )
    for options in ({}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}):
        drawn = sample(logits, temperature=temperature, **options, impl=impl)
        assert drawn.tolist() == [-1, -1, 2, 1, 2, 0]


@pytest.mark.parametrize("impl", IMPLS)
def test_a_tiny_top_p_is_greedy_and_top_k_beyond_the_vocabulary_is_off(impl) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 30, generator=generator)
    options = {"seeds": [1, 2, 3, 4, 5], "impl": impl}
    assert torch.equal(sample(logits, top_p=1e-9, **options), logits.argmax(-1))
    assert torch.equal(sample(logits, min_p=1.0, **options), logits.argmax(-1))
    assert torch.equal(sample(logits, top_k=1, **options), logits.argmax(-1))
    assert torch.equal(sample(logits, top_k=10**12, **options), sample(logits, **options))


@pytest.mark.parametrize("impl", IMPLS)
def test_logits_may_be_strided_and_rows_may_be_none(impl) -> None:
    logits = torch.randn(4, 40)
    expected = sample(logits[:, 8:24].clone(), seeds=1, impl=impl)
    assert torch.equal(sample(logits[:, 8:24], seeds=1, impl=impl), expected)
    assert torch.equal(sample(logits[:, 8:24].t().contiguous().t(), seeds=1, impl=impl), expected)
    assert sample(logits[:0], impl=impl).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -0.1}, r"temperature: expected numbers in \[0, inf\), got -0.1"),
        ({"temperature": math.nan}, "temperature: expected numbers in"),
        ({"temperature": math.inf}, "temperature: expected numbers in"),
        ({"temperature": [1.0, math.nan]}, "temperature: expected numbers in"),
        ({"top_p": 0.0}, r"top_p: expected numbers in \(0, 1\], got 0"),
        ({"top_p": [0.5, 1.5]}, "top_p: expected numbers in .* got 0.5 to 1.5"),
        ({"top_p": torch.tensor([math.nan, 0.5])}, "top_p: expected numbers in"),
        ({"top_k": -1}, r"top_k: expected numbers in \[0, inf\), got -1"),
        ({"top_k": 1.5}, "top_k dtype: expected integers"),
        ({"min_p": 1.1}, "min_p: expected numbers in"),
        ({"seeds": 0.5}, "seeds dtype: expected integers"),
        ({"seeds": 1 << 63}, "seeds: expected a number that fits torch.int64, got 92233"),
        ({"seeds": 1 << 70}, "seeds: expected a number that fits torch.int64"),
        ({"seeds": [0, 1 << 63]}, "seeds: expected numbers that fit torch.int64"),
        ({"seeds": [1, 2, 3]}, r"seeds shape: expected \[2\], got \[3\]"),
        ({"positions": torch.tensor([[1, 2]])}, "positions shape"),
        ({"logits": torch.ones(2, 0)}, "logits shape: expected at least one column"),
        ({"logits": torch.ones(3)}, "logits shape"),
        ({"logits": torch.ones(2, 3, dtype=torch.int64)}, "logits dtype"),
    ],
)
def test_misuse_is_refused(change: dict, message: str) -> None:
    arguments = {"logits": torch.zeros(2, 5), **change}
    with pytest.raises((ValueError, TypeError), match=message):
        inspect.unwrap(sample)(**arguments)
