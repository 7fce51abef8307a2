"""The decoder a run trains, its loss, and how it is written for others to load."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.func import functional_call

from blocks.ops import linear_cross_entropy
from recipes.model import Attend, Decoder, ModelConfig, init_weights, save_model
from recipes.train import chat
from recipes.train.attend import blocked_attend
from recipes.train.config import TrainConfig
from recipes.train.evaluate import LossSum


def model_config(config: TrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The Llama-style architecture of a run."""
    end, pad = (tokenizer.token_to_id(token) for token in (chat.END, chat.PAD))
    assert end is not None, "the end token is in every vocabulary learnt here"
    return ModelConfig(
        family="llama",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.hidden_size // config.num_heads,
        max_positions=config.context_len,
        norm_eps=1e-5,
        tie_embeddings=True,
        eos_token_ids=(end,),
        pad_token_id=pad,
        dtype="float32",
    )


def build_decoder(config: TrainConfig, tokenizer: Tokenizer) -> Decoder:
    """A decoder in float32 with random weights; the seed alone decides them."""
    decoder = Decoder(model_config(config, tokenizer))
    init_weights(decoder, torch.Generator().manual_seed(config.seed))
    return decoder


def make_loss(decoder: Decoder, config: TrainConfig) -> LossSum:
    """The summed next-token loss of a batch.

    Under ``dtype="bfloat16"`` the step runs on a bfloat16 copy of the parameters, made inside the
    graph, so gradients and updates reach the float32 originals.
    """
    dtype = getattr(torch, config.dtype)
    attends: dict[int, Attend] = {}

    def hidden_of(token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        weights = {name: tensor.to(dtype) for name, tensor in decoder.named_parameters()}
        return functional_call(decoder, weights, (token_ids, positions, attend))

    compiled = torch.compile(hidden_of, dynamic=False) if config.compile else hidden_of

    def loss_sum(inputs: Tensor, labels: Tensor) -> Tensor:
        num_rows, length = inputs.shape
        if length not in attends:
            attends[length] = blocked_attend(decoder.config, length)
        positions = torch.arange(length).repeat(num_rows)
        run = compiled if torch.is_grad_enabled() else hidden_of  # a look costs no compilation
        hidden = run(inputs.flatten(), positions, attends[length])
        weight = decoder.embed.weight
        return linear_cross_entropy(hidden, weight, labels.flatten(), reduction="sum")

    return loss_sum


def export_model(
    decoder: Decoder, tokenizer: Tokenizer, folder: Path, *, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Write a Hugging Face folder, chat template and all, ready to be served.

    Args:
        dtype: of the weights in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = decoder.config
    save_model(decoder, folder, dtype=dtype)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(chat.TEMPLATE)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": chat.END,
        "pad_token": chat.PAD,
        "additional_special_tokens": list(chat.ROLES.values()),
        "model_max_length": config.max_positions,
        "clean_up_tokenization_spaces": False,
    }
    generation = {"eos_token_id": config.eos_token_ids[0], "pad_token_id": config.pad_token_id}
    for name, content in {"tokenizer_config": settings, "generation_config": generation}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    return folder
