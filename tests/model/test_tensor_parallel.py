"""Tensor-parallel decoders equal whole ones, forward and backward, in float64."""

import copy
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.sharding import (
    Group,
    Mesh,
    all_gather,
    axis_groups,
    cut_tensor,
    make_device_mesh,
    narrow,
    run_local,
    vocab_cross_entropy,
)
from recipes.model import Decoder, ModelConfig, Rope, batched_attend, init_weights
from recipes.model.tensor_parallel import (
    gather_state,
    shard_state,
    sum_shared_gradients,
    tensor_parallel,
)
from recipes.model.tensor_parallel_cuts import tensor_parallel_cuts
from tests.forked import run_forked
from tests.numerics import assert_close

SEQ_LEN, NUM_TOKENS = 6, 12
BASE = {
    "family": "llama",
    "vocab_size": 29,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "max_positions": SEQ_LEN,
}
FAMILIES = {
    "llama": {},
    "one kv head": {"num_kv_heads": 1, "tie_embeddings": True},
    "all kv heads": {"num_kv_heads": 4},
    "uneven queries": {"num_heads": 12, "num_kv_heads": 3, "intermediate_size": 21},
    "qwen": {"qkv_bias": True, "qk_norm": True},
    "gpt2": {
        "norm": "layer", "activation": "gelu_tanh", "gated_mlp": False, "qkv_bias": True,
        "out_bias": True, "mlp_bias": True, "rope": None, "num_kv_heads": 4,
    },
    "gemma": {
        "norm_order": "sandwich", "norm_offset": 1.0, "attention_softcap": 5.0,
        "logit_softcap": 3.0, "windows": (3, None), "embedding_scale": 2.0, "tie_embeddings": True,
    },
    "opt": {
        "norm": "layer", "norm_order": "post", "activation": "relu", "gated_mlp": False,
        "rope": None, "position_offset": 2, "embedding_dim": 10, "final_norm": False,
        "out_bias": True, "mlp_bias": True, "tie_embeddings": True,
    },
    "mixtral": {"num_experts": 3, "num_experts_per_token": 2},
}  # fmt: skip


def make_config(family: str) -> ModelConfig:
    return ModelConfig(**{**BASE, "rope": Rope(), **FAMILIES[family]})


def make_decoder(config: ModelConfig) -> Decoder:
    decoder = Decoder(config, dtype=torch.float64)
    init_weights(decoder, torch.Generator().manual_seed(0), std=0.3)
    for name, parameter in decoder.named_parameters():  # biases that matter
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    return decoder


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(29, (NUM_TOKENS,), generator=generator)
    labels = torch.randint(29, (NUM_TOKENS,), generator=generator)
    labels[3] = -100
    return tokens, torch.arange(SEQ_LEN).repeat(2), labels


def whole_run(config: ModelConfig) -> tuple[Decoder, Tensor]:
    decoder = make_decoder(config)
    tokens, positions, labels = batch()
    hidden = decoder(tokens, positions, batched_attend(config, SEQ_LEN))
    loss = F.cross_entropy(decoder.logits(hidden), labels)
    loss.backward()
    return decoder, loss.detach()


def cut_run(
    config: ModelConfig, group: Group, vocabulary: bool, sequence: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and whole gradients."""
    decoder = make_decoder(config)
    cuts = tensor_parallel(decoder, config, group, vocabulary=vocabulary, sequence=sequence)
    tokens, positions, labels = batch()
    if sequence:
        hidden = sequence_parallel_hidden(decoder, tokens, positions, group)
    else:
        hidden = decoder(tokens, positions, batched_attend(config, SEQ_LEN))
    logits = decoder.logits(hidden)
    if vocabulary:
        loss = vocab_cross_entropy(logits, labels, config.vocab_size, group)
    else:
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    sum_shared_gradients(decoder.named_parameters(), cuts, group)
    grads = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    assert len(grads) == len(list(decoder.parameters()))
    return loss.detach(), gather_state(grads, cuts, group)


def sequence_parallel_hidden(
    decoder: Decoder, tokens: Tensor, positions: Tensor, group: Group
) -> Tensor:
    """What ``Decoder.forward`` does, with runs of the tokens between the cut layers."""
    x, residual = narrow(decoder._embed(tokens, positions), group, 0), None
    attend = batched_attend(decoder.config, SEQ_LEN)
    for layer in decoder.layers:
        x, residual = layer(x, residual, positions, decoder.cos_sin, attend)
    x = all_gather(x if residual is None else x + residual, group, 0)
    return x if decoder.final_norm is None else decoder.final_norm(x)


def compare(config: ModelConfig, found: list[tuple[Tensor, dict[str, Tensor]]]) -> None:
    decoder, loss = whole_run(config)
    for other, grads in found:
        assert torch.equal(other, found[0][0]), "the loss is the same on all ranks"
        assert_close(other, loss, what="loss")
        for name, parameter in decoder.named_parameters():
            assert parameter.grad is not None
            assert torch.equal(grads[name], found[0][1][name]), name
            assert_close(grads[name], parameter.grad, what=f"gradient of {name}")


@pytest.mark.parametrize(("size", "vocabulary"), [(1, True), (2, False), (4, True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_whole_decoder(family: str, size: int, vocabulary: bool) -> None:
    config = make_config(family)

    def work(rank: int, groups: Mapping[str, Group]) -> tuple[Tensor, dict[str, Tensor]]:
        return cut_run(config, groups["tensor"], vocabulary)

    compare(config, run_local(Mesh.of(tensor=size), work))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_parallel(family: str, size: int) -> None:
    config = make_config(family)

    def work(rank: int, groups: Mapping[str, Group]) -> tuple[Tensor, dict[str, Tensor]]:
        return cut_run(config, groups["tensor"], size == 4, sequence=True)

    compare(config, run_local(Mesh.of(tensor=size), work))


@pytest.mark.parametrize("size", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("family", FAMILIES)
def test_state_goes_both_ways(family: str, size: int) -> None:
    config = make_config(family)
    if config.num_heads % size or config.intermediate_size < size:
        with pytest.raises(ValueError, match="tp"):
            tensor_parallel_cuts(config, size)
        return
    decoder = make_decoder(config)
    cuts = tensor_parallel_cuts(config, size, vocabulary=True, sequence=True)
    state = dict(decoder.named_parameters())
    parts = [shard_state(state, cuts, rank) for rank in range(size)]

    def work(rank: int, groups: Mapping[str, Group]) -> dict[str, Tensor]:
        here = copy.deepcopy(decoder)
        found = tensor_parallel(
            here, config, groups["tensor"], vocabulary=True, sequence=True
        )  # the same cuts and parts as the data says
        assert found.items() <= cuts.items()
        for name, parameter in here.named_parameters():
            assert torch.equal(parameter, parts[rank][name]), name
        return gather_state(dict(here.named_parameters()), cuts, groups["tensor"])

    for whole in run_local(Mesh.of(tensor=size), work):
        for name, tensor in state.items():
            assert torch.equal(whole[name], tensor), name


def gloo_work(rank: int) -> list:
    groups = axis_groups(make_device_mesh(Mesh.of(tensor=2)))
    loss, grads = cut_run(make_config("one kv head"), groups["tensor"], True)
    return [loss.numpy(), {name: grad.numpy() for name, grad in grads.items()}]


def test_on_gloo() -> None:
    found = [
        (torch.from_numpy(loss), {name: torch.from_numpy(g) for name, g in grads.items()})
        for loss, grads in run_forked(2, gloo_work)
    ]
    compare(make_config("one kv head"), found)


def test_a_part_holds_its_share() -> None:
    config = make_config("llama")
    cuts = tensor_parallel_cuts(config, 2, vocabulary=True)
    decoder = make_decoder(config)
    whole = sum(p.numel() for name, p in decoder.named_parameters() if name in cuts)
    held = sum(
        cut_tensor(p, cuts[n], 0).numel() for n, p in decoder.named_parameters() if n in cuts
    )
    assert held == pytest.approx(whole / 2, rel=0.02)  # 29 rows of the vocabulary are 15 and 14
