"""transformers models with our attention produce what they produce with their own."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from blocks.kv import OutOfBlocks
from recipes.hf.paged_attention import PagedCache
from tests.numerics import assert_close

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MODELS = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 24}),
    "mistral-window": ("MistralConfig", {"sliding_window": 7}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 5, "attn_logit_softcapping": 5.0, "bos_token_id": 2},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 3, "n_head": 4, "attn_pdrop": 0.0}),
}


def pair(name: str, dtype: torch.dtype = torch.float32):
    """The same random weights with transformers' eager attention and with ours."""
    kind, changes = MODELS[name]
    sizes = SIZES if kind != "GPT2Config" else {"vocab_size": 97, "eos_token_id": None}
    config = getattr(transformers, kind)(**{**sizes, **changes})
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().to(dtype)
    ours = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().to(dtype)
    ours.load_state_dict(theirs.state_dict())
    ours.set_attn_implementation("blocks")
    return theirs, ours


def left_padded(lens: list[int]) -> dict[str, torch.Tensor]:
    width = max(lens)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (len(lens), width), generator=generator)
    mask = torch.arange(width)[None] >= width - torch.tensor(lens)[:, None]
    return {"input_ids": ids.where(mask, 0), "attention_mask": mask.long()}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_generate_through_pages_equals_eager(name):
    theirs, ours = pair(name)
    inputs = left_padded([23, 4, 17])
    expected = theirs.generate(**inputs, max_new_tokens=20, do_sample=False)
    cache = PagedCache(ours.config, max_tokens=3 * 48, block_size=4)
    actual = ours.generate(**inputs, max_new_tokens=20, do_sample=False, past_key_values=cache)
    assert torch.equal(actual, expected)
    assert cache.lens() == [23 + 19, 4 + 19, 17 + 19]  # the last token is never fed back
    cache.manager.check_invariants()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_beams_share_pages(name):
    theirs, ours = pair(name)
    inputs = left_padded([23, 4])
    how = {"max_new_tokens": 12, "num_beams": 4, "do_sample": False}
    expected = theirs.generate(**inputs, **how)
    tokens = 2 * 24 + 8 * 20  # less than 8 rows of 36 tokens: only sharing fits
    cache = PagedCache(ours.config, max_tokens=tokens, block_size=4)
    assert torch.equal(ours.generate(**inputs, past_key_values=cache, **how), expected)
    cache.reset()
    assert cache.manager.num_free_blocks == cache.manager.num_usable_blocks
    assert torch.equal(ours.generate(**inputs, past_key_values=cache, **how), expected)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_transformers_own_cache_works_too(name):
    theirs, ours = pair(name)
    inputs = left_padded([9, 12])
    how = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(ours.generate(**inputs, **how), theirs.generate(**inputs, **how))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_loss_and_gradients_equal_eager(name):
    found = []
    inputs = left_padded([15, 6])
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    for model in pair(name, torch.float64):
        loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        found.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    (loss, grads), (our_loss, our_grads) = found
    assert_close(our_loss, loss, slack=10)
    for parameter, grad in grads.items():
        assert_close(our_grads[parameter], grad, what=parameter, slack=100)


def test_packed_documents_do_not_see_each_other():
    _, ours = pair("llama")
    ids = left_padded([20])["input_ids"]
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    together = ours(ids, position_ids=positions, use_cache=False).logits
    assert_close(together[:, 8:], ours(ids[:, 8:], use_cache=False).logits)


def test_a_full_cache_says_so_and_can_go_on():
    _, ours = pair("llama")
    cache = PagedCache(ours.config, max_tokens=40, block_size=4)
    with pytest.raises(OutOfBlocks, match="at most 40 tokens in 10 pages of 4, got 46 in 2 rows"):
        ours(**left_padded([23, 23]), past_key_values=cache)
    cache.reset()
    logits = ours(**left_padded([23]), past_key_values=cache).logits
    assert_close(logits, ours(**left_padded([23]), use_cache=False).logits)
    with pytest.raises(ValueError, match="batch size: expected 1, got 2"):
        ours(**left_padded([2, 2]), past_key_values=cache)


def test_what_the_kernels_cannot_do_is_refused():
    _, ours = pair("llama")
    inputs = left_padded([5])
    with pytest.raises(ValueError, match="attention_mask: expected 2 dimensions"):
        ours(inputs["input_ids"], attention_mask=torch.ones(1, 1, 5, 5).bool(), use_cache=False)
    ours.train()
    for layer in ours.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"attention dropout: expected 0, got 0\.1"):
        ours(**inputs, use_cache=False)
