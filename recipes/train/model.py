"""The decoder a run trains, and how it is written for others to load."""

import hashlib
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from recipes.model import Decoder, ModelConfig, save_model
from recipes.model.init import init_parameter
from recipes.train import chat
from recipes.train.config import TrainConfig


def model_config(config: TrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The Llama-style architecture of a run."""
    end, pad = (tokenizer.token_to_id(token) for token in (chat.END, chat.PAD))
    assert end is not None, "the end token is in every vocabulary learnt here"
    return ModelConfig(
        family="mistral" if config.window else "llama",  # a Llama with a window
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.hidden_size // config.num_heads,
        max_positions=config.context_len,
        norm_eps=1e-5,
        windows=(config.window,) * config.num_layers if config.window else (),
        tie_embeddings=config.tie_embeddings,
        eos_token_ids=(end,),
        pad_token_id=pad,
        dtype="float32",
    )


def build_decoder(config: TrainConfig, tokenizer: Tokenizer) -> Decoder:
    """The whole decoder in float32, with the weights a run begins with."""
    decoder = Decoder(model_config(config, tokenizer))
    for name, parameter in decoder.named_parameters():
        first_weights(name, parameter, decoder.config, config.seed)
    return decoder


def first_weights(name: str, parameter: Tensor, config: ModelConfig, seed: int) -> None:
    """Fill a parameter at random: a function of ``seed`` and its name, wherever it lives."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    init_parameter(name, parameter, config, generator)


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
