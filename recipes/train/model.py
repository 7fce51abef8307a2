"""The decoder a run trains, its loss, and how it is written for others to load."""

import dataclasses
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from recipes.model import Attend, Decoder, ModelConfig, init_weights
from recipes.train import chat
from recipes.train.attend import blocked_attend
from recipes.train.config import TrainConfig
from recipes.train.evaluate import LossSum
from recipes.train.loss import linear_cross_entropy


def model_config(config: TrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The Llama-style architecture of a run."""
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
        eos_token_ids=(tokenizer.token_to_id(chat.END),),
        pad_token_id=tokenizer.token_to_id(chat.PAD),
        dtype="float32",
    )


def build_decoder(config: TrainConfig, tokenizer: Tokenizer) -> Decoder:
    """A decoder in float32 with random weights; the seed alone decides them."""
    decoder = Decoder(model_config(config, tokenizer))
    init_weights(decoder, torch.Generator().manual_seed(config.seed))
    return decoder


def make_loss(decoder: Decoder, config: TrainConfig) -> LossSum:
    """The summed next-token loss of a batch, under autocast if the config says bfloat16."""
    dtype = getattr(torch, config.dtype)
    attends: dict[int, Attend] = {}
    compiled = torch.compile(decoder, dynamic=False) if config.compile else decoder

    def loss_sum(inputs: Tensor, labels: Tensor) -> Tensor:
        num_rows, length = inputs.shape
        if length not in attends:
            attends[length] = blocked_attend(decoder.config, length)
        positions = torch.arange(length).repeat(num_rows)
        run = compiled if torch.is_grad_enabled() else decoder  # a look costs no compilation
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = run(inputs.flatten(), positions, attends[length])
        return linear_cross_entropy(hidden, decoder.embed.weight, labels.flatten(), dtype=dtype)

    return loss_sum


def export_model(decoder: Decoder, tokenizer: Tokenizer, folder: Path) -> Path:
    """Write a Hugging Face folder in bfloat16, chat template and all, ready to be served."""
    folder.mkdir(parents=True, exist_ok=True)
    config = decoder.config
    copy = Decoder(_with_dtype(config), dtype=torch.bfloat16)
    copy.load_state_dict(decoder.state_dict())
    from recipes.model import save_model

    save_model(copy, folder)
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


def _with_dtype(config: ModelConfig) -> ModelConfig:
    import dataclasses

    return dataclasses.replace(config, dtype="bfloat16")
