import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.ops import top_logprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_the_log_softmax(dtype: torch.dtype, seeded: torch.Generator) -> None:
    logits = torch.randn(5, 40, generator=seeded).to(dtype)
    token_ids = torch.randint(0, 40, (5,), generator=seeded)
    found = top_logprobs(logits, token_ids, 6)
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close(
        found.chosen.double(), expected.gather(1, token_ids[:, None])[:, 0], rtol=0, atol=2e-6
    )
    torch.testing.assert_close(
        found.top.double(), expected.sort(-1, descending=True)[0][:, :6], rtol=0, atol=2e-6
    )
    torch.testing.assert_close(
        found.top.double(), expected.gather(1, found.top_ids), rtol=0, atol=2e-6
    )
    for row, token in enumerate(token_ids.tolist()):
        assert found.rank[row] == (expected[row] > expected[row, token]).sum()


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered")  # numpy's
@given(
    num_rows=st.integers(0, 3),
    vocab_size=st.integers(1, 70),
    levels=st.sampled_from([2, 7, 1000]),
    num_top=st.integers(0, 8),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    tiles=st.sampled_from([(32, 32), (8, 4)]),
    seed=st.integers(0, 999),
)
def test_the_kernel_equals_the_reference(
    num_rows, vocab_size, levels, num_top, dtype, tiles, seed
) -> None:
    """Few levels make ties, also among the largest of groups: the lowest id comes first."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, vocab_size)
    logits = (torch.randint(0, levels, shape, generator=generator) * 8 / levels - 3).to(dtype)
    logits[torch.rand(shape, generator=generator) < 0.05] = -torch.inf
    token_ids = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    num_top = min(num_top, vocab_size)
    expected = top_logprobs(logits, token_ids, num_top, impl="reference")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("TILE", "GROUP"), tiles, strict=True):
            patch.setattr(f"blocks.ops.sampling.{name}", value)
        patch.setattr("blocks.ops.logprobs.MAX_TOP", 8)  # 16 groups in registers, of up to 18
        found = top_logprobs(logits, token_ids, num_top, impl="triton")
    assert torch.equal(found.rank, expected.rank)
    alive = (logits > -torch.inf).any(-1)
    assert found.chosen[~alive].isnan().all()
    for ours, theirs in ((found.chosen, expected.chosen), (found.top, expected.top)):
        torch.testing.assert_close(ours[alive], theirs[alive], rtol=0, atol=4e-6)
    finite = expected.top.isfinite()
    assert torch.equal(found.top_ids[finite], expected.top_ids[finite])


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered")  # numpy's
def test_rows_without_a_distribution(impl) -> None:
    logits = torch.tensor([[0.0, torch.nan, 1.0], [torch.inf, 0.0, 1.0], [-torch.inf] * 3])
    found = top_logprobs(logits, torch.tensor([0, 1, 2]), impl=impl)
    assert found.chosen[0].isnan()
    assert found.chosen[1] == -torch.inf
    assert found.chosen[2].isnan()
    assert found.rank.tolist() == [1, 2, 0]


def test_the_kernel_reports_no_more_than_it_holds() -> None:
    logits, token_ids = torch.randn(1, 200), torch.tensor([3])
    assert top_logprobs(logits, token_ids, 200).top.shape == (1, 200)
    with pytest.raises(ValueError, match="num_top: expected at most 64 in Triton, got 65"):
        top_logprobs(logits, token_ids, 65, impl="triton")


def test_banned_tokens_and_an_empty_list() -> None:
    logits = torch.tensor([[0.0, -torch.inf]])
    found = top_logprobs(logits, torch.tensor([1]))
    assert found.chosen.tolist() == [-torch.inf]
    assert found.rank.tolist() == [1]
    assert found.top.shape == found.top_ids.shape == (1, 0)
    assert top_logprobs(logits[:0], torch.zeros(0, dtype=torch.int64), 2).top.shape == (0, 2)


@pytest.mark.parametrize(
    ("token_ids", "num_top", "message"),
    [
        ([4], 0, r"token_ids: expected within \[0, 4\)"),
        ([-1], 0, r"token_ids: expected within \[0, 4\)"),
        ([0, 1], 0, r"token_ids shape: expected \[1\]"),
        ([0], 5, r"num_top: expected within \[0, 4\], got 5"),
        ([0], -1, r"num_top: expected within \[0, 4\], got -1"),
    ],
)
def test_misuse_is_refused(token_ids: list[int], num_top: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(top_logprobs)(torch.ones(1, 4), torch.tensor(token_ids), num_top)
