"""Every family computes what transformers computes."""

import pytest
import torch

from recipes.model import Decoder, dense_attend, load_model
from tests.model.oracle import CASES, hf_folder, hf_logits, hf_model

LENGTH = 40  # past every window of the cases


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def tokens_of(vocab_size: int, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def prefill_logits(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
    with torch.inference_mode():
        hidden = decoder(tokens, torch.arange(len(tokens)), dense_attend(decoder.config, bounds))
        return decoder.logits(hidden)


@pytest.mark.parametrize("case", CASES)
def test_prefill_logits_equal_transformers(case, root):
    decoder = load_model(hf_folder(case, root))
    tokens = tokens_of(decoder.config.vocab_size)
    expected = hf_logits(hf_model(case), tokens)
    assert expected.std() > 0.1  # a model that says nothing would pass any comparison
    error = (prefill_logits(decoder, tokens) - expected).abs().max()
    assert error < 1e-4, error
