"""Every family computes what transformers computes, along every way through attention."""

import functools

import pytest
import torch

from recipes.model import Decoder, dense_attend, load_model
from tests.model.oracle import CASES, hf_folder, hf_greedy, hf_logits, hf_model
from tests.model.paged import PagedRunner

LENGTH = 40  # past every window of the cases, and past the first context of the scaled ropes
LIMIT = 1e-4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def decoder(case, root) -> Decoder:
    return _decoder(case, root)


@functools.cache
def _decoder(case, root) -> Decoder:
    return load_model(hf_folder(case, root))


def tokens_of(length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 101, (length,), generator=torch.Generator().manual_seed(seed))


def prefill_logits(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
    with torch.inference_mode():
        hidden = decoder(tokens, torch.arange(len(tokens)), dense_attend(decoder.config, bounds))
        return decoder.logits(hidden)


def assert_equal(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.2  # a model that says nothing would pass any comparison
    error = (logits - expected).abs().max()
    assert error < LIMIT, f"logits differ by {error:.2e}"


def test_prefill_logits_equal_transformers(case, decoder):
    tokens = tokens_of()
    assert_equal(prefill_logits(decoder, tokens), hf_logits(hf_model(case), tokens))


def test_chunked_prefill_through_pages_equals_transformers(case, decoder):
    """Two sequences in chunks of uneven sizes, one of them empty at times."""
    one, two = tokens_of(), tokens_of(29, seed=1)
    runner = PagedRunner(decoder, num_seqs=2, max_len=LENGTH)
    parts = [
        runner.step(list(new))
        for new in zip(one.split([1, 16, 0, 7, 16]), two.split([9, 0, 3, 16, 1]), strict=True)
    ]
    for tokens, logits in zip((one, two), zip(*parts, strict=True), strict=True):
        assert_equal(torch.cat(logits), hf_logits(hf_model(case), tokens))


def greedy(decoder: Decoder, prompt: torch.Tensor, num_tokens: int) -> tuple[list[int], list]:
    """Tokens chosen one at a time through pages, and the logits before and after each."""
    runner = PagedRunner(decoder, num_seqs=1, max_len=len(prompt) + num_tokens)
    (logits,) = runner.step([prompt])
    chosen, seen = [], [logits]
    for _ in range(num_tokens):
        chosen.append(int(seen[-1][-1].argmax()))
        seen += runner.step([torch.tensor(chosen[-1:])], decode=True)
    return chosen, seen


def test_64_tokens_decoded_one_by_one_through_pages_equal_transformers(case, decoder):
    """Logits of every step, and the greedy choices. One forward pass is enough of an oracle: if
    every choice is its choice after the same tokens, it would by induction have written them."""
    prompt = tokens_of(13, seed=3)
    chosen, logits = greedy(decoder, prompt, 64)
    expected = hf_logits(hf_model(case), torch.cat((prompt, torch.tensor(chosen))))
    assert_equal(torch.cat(logits), expected)
    assert chosen == expected[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert len(set(chosen)) > 3, "a repeated token proves little"


def test_greedy_tokens_equal_transformers_generate(root):
    prompt = tokens_of(13, seed=3)
    chosen, _ = greedy(_decoder("llama", root), prompt, 64)
    assert chosen == hf_greedy(hf_model("llama"), prompt, 64)


def test_bfloat16_stays_near_float32(case, decoder, root):
    tokens = tokens_of()
    half = load_model(hf_folder(case, root), dtype=torch.bfloat16)
    assert half.embed.weight.dtype == torch.bfloat16
    expected = prefill_logits(decoder, tokens)
    error = prefill_logits(half, tokens).float() - expected
    assert error.square().mean().sqrt() < 0.1 * expected.std()
