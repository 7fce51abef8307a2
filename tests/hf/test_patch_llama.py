import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from recipes.hf import patch, patched, unpatch
from tests.numerics import assert_close

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama3 rope, biases, tied": LlamaConfig(
        **SIZES,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama gelu": LlamaConfig(**SIZES, hidden_act="gelu"),
    "mistral": MistralConfig(**SIZES, sliding_window=5, head_dim=8),
    "qwen2": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}


def make(name: str = "llama") -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]))
    for parameter in model.parameters():  # norms of one and biases of zero would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.train()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 97, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padded on the left
    labels = ids.clone()
    labels[2, 6:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model: Any, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**{**batch(), **more}).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_alike(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, Any]) -> None:
    assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in ours[1].items():
        assert_close(grad, theirs[1][name], what=name, slack=10)  # two layers of fp32


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_every_gradient_are_those_of_the_model_as_it_was(name) -> None:
    model = make(name)
    theirs = loss_and_gradients(model)
    with patched(model):
        ours = loss_and_gradients(model)
    assert_alike(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"num_items_in_batch": 7},
        {"num_items_in_batch": torch.tensor(9)},
        {"shift_labels": torch.arange(33).view(3, 11)},
        {"ignore_index": 5, "labels": torch.arange(33).view(3, 11)},
        {"position_ids": torch.arange(11).expand(3, 11) + torch.tensor([[0], [2], [7]])},
    ],
)
def test_what_a_trainer_passes_along_means_the_same(options) -> None:
    model = make()
    theirs = loss_and_gradients(model, **options)
    assert_alike(loss_and_gradients(patch(model), **options), theirs)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_goes_on() -> None:
    model = patch(make())
    theirs = loss_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    handle = model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    ours = loss_and_gradients(model)
    handle.remove()
    assert len(calls) == 2, "forward, and again in backward"
    assert_alike(ours, theirs)


def test_training_makes_no_logits_and_evaluation_does() -> None:
    model = patch(make())
    found = model(**batch())
    assert found.logits is None
    assert isinstance(model(**batch(), return_dict=False), tuple)
    assert model(**{**batch(), "labels": None}).logits.shape == (3, 11, 97)
    model.eval()
    looked = model(**batch())
    assert looked.logits.shape == (3, 11, 97)
    assert_close(looked.loss, found.loss)


def test_generation_is_unchanged() -> None:
    model = make().eval()
    given = {name: tensor for name, tensor in batch().items() if name != "labels"}
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    theirs = model.generate(**given, **options)
    assert torch.equal(patch(model).generate(**given, **options), theirs)


def test_hidden_states_and_attentions_are_recorded() -> None:
    model = make()
    theirs = model(**batch(), output_hidden_states=True, output_attentions=True)
    ours = patch(model)(**batch(), output_hidden_states=True, output_attentions=True)
    for mine, other in (
        (ours.hidden_states, theirs.hidden_states),
        (ours.attentions, theirs.attentions),
    ):
        assert len(mine) == len(other)
        for a, b in zip(mine, other, strict=True):
            assert_close(a, b, slack=5)


def test_undoing_leaves_nothing_behind(tmp_path) -> None:
    model = make()
    classes = [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    assert patch(patch(model)) is model
    changed = [type(module) for module in model.modules()]
    assert sum(a is not b for a, b in zip(classes, changed, strict=True)) == 1 + 1 + 2 * 5
    assert all(isinstance(m, c) for m, c in zip(model.modules(), classes, strict=True))
    model.save_pretrained(tmp_path)
    assert unpatch(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == attributes
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").train()
    assert_alike(loss_and_gradients(again), loss_and_gradients(model))


def test_a_failure_inside_the_block_still_undoes() -> None:
    model = make()
    with pytest.raises(KeyError), patched(model):
        raise KeyError
    assert type(model) is type(make())


def test_a_wrapper_may_change_the_class_again() -> None:
    """As fully sharded training does."""
    model = patch(make())
    theirs = model(**batch()).loss
    model.__class__ = type("Wrapped", (type(model),), {})
    assert torch.equal(model(**batch()).loss, theirs)
    assert model.eval()(**batch()).logits is not None


def test_one_patched_model_leaves_others_alone() -> None:
    one, other = make(), make()
    patch(one)
    assert other(**batch()).logits is not None
    copied = copy.deepcopy(one)
    assert copied(**batch()).logits is None
    unpatch(one)
    assert copied(**batch()).logits is None


def test_other_models_are_refused() -> None:
    sizes = {**SIZES, "head_dim": 8}
    with pytest.raises(ValueError, match=r"model: expected one of llama, .*got 'gemma2'"):
        patch(AutoModelForCausalLM.from_config(Gemma2Config(**sizes)))
    with pytest.raises(ValueError, match=r"lm_head: expected a torch.nn.Linear"):
        patch(LlamaForSequenceClassification(LlamaConfig(**SIZES)))
