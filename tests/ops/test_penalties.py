import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from blocks.ops import add_logit_bias, apply_penalties


@given(
    num_rows=st.integers(1, 4),
    prompt_len=st.integers(1, 8),
    output_len=st.integers(0, 8),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    presence=st.sampled_from([0.0, 0.4]),
    frequency=st.sampled_from([0.0, -0.2]),
    seed=st.integers(0, 99),
)
def test_penalties_follow_the_formulas(
    num_rows: int,
    prompt_len: int,
    output_len: int,
    repetition: float,
    presence: float,
    frequency: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocab_size = 12
    logits = torch.randn(num_rows, vocab_size, generator=generator)
    tokens = torch.randint(0, vocab_size, (num_rows, prompt_len + output_len), generator=generator)
    penalise: Any = RepetitionPenaltyLogitsProcessor(repetition)
    expected = penalise(tokens, logits.clone())
    entries = []
    for row in range(num_rows):
        output = tokens[row, prompt_len:].tolist()
        for token in set(tokens[row].tolist()):
            count = output.count(token)
            entries.append((row, token, count))
            expected[row, token] -= presence * (count > 0) + frequency * count
    rows, token_ids, counts = torch.tensor(entries).T
    per_row = torch.full((num_rows,), presence)
    actual = apply_penalties(
        logits, rows, token_ids, counts,
        repetition=repetition, presence=per_row, frequency=frequency,
    )  # fmt: skip
    assert actual is logits
    torch.testing.assert_close(actual, expected)


def test_each_row_has_its_own_penalty() -> None:
    logits = torch.ones(2, 3)
    one = torch.tensor([0, 1])
    apply_penalties(logits, one, one, one, repetition=torch.tensor([2.0, 1.0]), presence=0.25)
    assert logits.tolist() == [[0.5, 1.0, 1.0], [1.0, 0.75, 1.0]]


def test_bias_is_added_and_bans() -> None:
    logits = torch.zeros(2, 3, dtype=torch.bfloat16)
    rows, token_ids = torch.tensor([0, 1]), torch.tensor([2, 0])
    add_logit_bias(logits, rows, token_ids, torch.tensor([1.5, -math.inf]))
    assert logits.tolist() == [[0.0, 0.0, 1.5], [-math.inf, 0.0, 0.0]]


def test_nothing_listed_changes_nothing() -> None:
    logits, none = torch.ones(2, 3), torch.zeros(0, dtype=torch.int64)
    apply_penalties(logits, none, none, none, repetition=2.0)
    add_logit_bias(logits, none, none, torch.zeros(0))
    assert torch.equal(logits, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": torch.tensor([3])}, r"token_ids: expected within \[0, 3\), got 3 to 3"),
        ({"token_ids": torch.tensor([-1])}, r"token_ids: expected within \[0, 3\)"),
        ({"rows": torch.tensor([2])}, r"rows: expected within \[0, 2\)"),
        ({"output_counts": torch.tensor([1, 2])}, r"output_counts shape: expected \[1\]"),
        ({"output_counts": torch.tensor([-1])}, "output_counts: expected numbers of at least 0"),
        ({"repetition": 0.0}, "repetition: expected numbers above 0"),
        ({"repetition": math.nan}, "repetition: expected numbers above 0"),
        ({"presence": math.inf}, "presence: expected finite numbers"),
        ({"frequency": torch.ones(3)}, r"frequency shape: expected \[2\]"),
    ],
)
def test_misuse_is_refused_and_changes_nothing(change: dict, message: str) -> None:
    one = torch.tensor([1])
    logits = torch.ones(2, 3)
    arguments = {"rows": one, "token_ids": one, "output_counts": one, **change}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(apply_penalties)(logits, **arguments)
    with pytest.raises(ValueError, match="bias: expected numbers"):
        add_logit_bias(logits, one, one, torch.tensor([math.nan]))
    assert torch.equal(logits, torch.ones(2, 3))
    shared = torch.ones(1, 3).expand(2, 3)
    with pytest.raises(ValueError, match="logits: expected memory of its own"):
        apply_penalties(shared, one, one, one, presence=1.0)
    assert (shared == 1).all()


@pytest.mark.parametrize("impl", ["torch", "triton"])
@given(
    num_entries=st.integers(0, 20),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    wide=st.booleans(),
    seed=st.integers(0, 99),
)
def test_implementations_equal_the_reference(impl, num_entries, dtype, wide, seed) -> None:
    """Settings one per row, logits with columns apart, entries at random; nothing else moves."""
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(5, 18, generator=generator).to(dtype)
    logits = memory[:, ::2] if wide else memory[:, :9]
    entries = torch.randperm(45, generator=generator)[:num_entries]
    rows, token_ids = entries // 9, entries % 9
    counts = torch.randint(0, 3, (num_entries,), generator=generator)
    settings: Any = {
        "repetition": torch.rand(5, generator=generator) + 0.5,
        "presence": 0.25,
        "frequency": torch.randn(5, generator=generator),
    }
    expected = apply_penalties(
        logits.clone(), rows, token_ids, counts, **settings, impl="reference"
    )
    bias = torch.randn(num_entries, generator=generator)
    expected = add_logit_bias(expected, rows, token_ids, bias, impl="reference")
    before = memory.clone()
    apply_penalties(logits, rows, token_ids, counts, **settings, impl=impl)
    add_logit_bias(logits, rows, token_ids, bias, impl=impl)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    untouched = torch.ones(5, 9, dtype=torch.bool)
    untouched[rows, token_ids] = False
    was = before[:, ::2] if wide else before[:, :9]
    assert torch.equal(logits[untouched], was[untouched])
    between = slice(1, None, 2) if wide else slice(9, None)
    assert torch.equal(memory[:, between], before[:, between])


@pytest.mark.parametrize("name", ["rows", "token_ids"])
def test_bytes_are_no_coordinates(name: str) -> None:
    """torch indexes by neither, and takes uint8 for a mask."""
    logits, zero = torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64)
    given = {"rows": zero, "token_ids": zero, name: zero.to(torch.int8)}
    with pytest.raises(TypeError, match=f"{name} dtype: expected torch.int32 or torch.int64, got"):
        add_logit_bias(logits, given["rows"], given["token_ids"], torch.ones(1))
    assert not logits.any()
