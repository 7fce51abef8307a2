"""The trainer's decoder as a family: its sizes, and its parameters beside those of the model."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.model import Decoder, batched_attend, init_weights
from recipes.plan.families import family
from recipes.plan.families.decoder import TrainedDecoder
from recipes.plan.families.decoder_pieces import decoder_pieces, split_state
from recipes.plan.families.decoder_sizes import DECODERS, decoder_config
from recipes.train.config import TrainConfig
from recipes.train.dial import dial
from recipes.train.presets import PRESETS


def trained_loss(decoder: Decoder, inputs: Tensor, labels: Tensor) -> Tensor:
    """The loss as ``recipes.train`` takes it, of the model as it is kept."""
    rows, length = inputs.shape
    positions = torch.arange(length).repeat(rows)
    hidden = decoder(inputs.flatten(), positions, batched_attend(decoder.config, length))
    return F.cross_entropy(decoder.logits(hidden), labels.flatten(), reduction="sum")


@pytest.mark.parametrize("changes", ["", ",tie_embeddings=false,qkv_bias=true", ",gated_mlp=false"])
def test_split_parameters_are_those_of_the_model(changes: str) -> None:
    torch.manual_seed(0)
    config = decoder_config(f"tiny{changes}")
    whole = Decoder(config).double()
    whole.cos_sin = whole.cos_sin.float()
    init_weights(whole)
    split = TrainedDecoder(config).double()
    split.load_state_dict(split_state(whole.state_dict(), config))
    inputs, labels = torch.randint(config.vocab_size, (2, 3, 8))
    labels[0, :3] = -100
    expected, got = trained_loss(whole, inputs, labels), split(inputs, labels)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    expected.backward()
    got.backward()
    named, pieces = dict(whole.named_parameters()), decoder_pieces(config)
    covered = dict.fromkeys(named, 0)
    for name, parameter in split.named_parameters():
        piece = pieces[name]
        theirs = named[piece.name].grad
        assert theirs is not None, name
        rows = theirs.narrow(0, piece.first_row, len(parameter))
        torch.testing.assert_close(parameter.grad, rows, rtol=1e-9, atol=1e-12)
        covered[piece.name] += parameter.numel()
    assert covered == {name: parameter.numel() for name, parameter in named.items()}


def test_sizes_are_those_of_the_trainer() -> None:
    made = {name: preset() for name, preset in PRESETS.items()}
    made |= {f"depth{depth}": dial(TrainConfig(), depth) for depth in (24, 48)}
    assert set(made) == set(DECODERS)
    for name, config in made.items():
        planned, trained = DECODERS[name], dataclasses.asdict(config)
        for field in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size"):
            assert getattr(planned, field) == trained[field], (name, field)
        assert planned.intermediate_size == config.intermediate_size
        assert planned.max_positions == config.context_len
        assert planned.tie_embeddings == config.tie_embeddings


def test_any_size_can_be_asked_for() -> None:
    config = decoder_config("bundled,num_layers=6,hidden_size=128")
    assert (config.num_layers, config.hidden_size, config.head_dim) == (6, 128, 32)
    assert family("decoder:tiny,num_layers=4").inputs(2)["labels"].shape == (2, 8)
    with pytest.raises(ValueError, match="decoder: expected one of tiny, demo"):
        decoder_config("giant")
    with pytest.raises(ValueError, match="did you mean num_layers"):
        decoder_config("tiny,num_layer=3")
    with pytest.raises(ValueError, match="seq_len: expected at most 64"):
        family("decoder:tiny").inputs(2, 65)
    with pytest.raises(ValueError, match="num_experts: expected 0"):
        family("decoder:tiny,num_experts=4,num_experts_per_token=2").make()


def test_the_table_of_positions_stays_wide() -> None:
    module = TrainedDecoder(decoder_config("tiny"))
    table = module.cos_sin.clone()
    narrow = module.to(torch.bfloat16)
    assert narrow.embed.weight.dtype == torch.bfloat16
    assert torch.equal(narrow.cos_sin, table)
