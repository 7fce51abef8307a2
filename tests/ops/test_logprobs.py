import inspect

import pytest
import torch

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
