"""Decoder families written against an ``attend`` callable; Hugging Face folders in and out.

``recipes.model.tokenizer`` is imported on its own: it alone needs the extra ``serve``.
"""

from recipes.model.attend import Attend, batched_attend, decode_attend, dense_attend, paged_attend
from recipes.model.config import AttentionSpec, ModelConfig, Rope
from recipes.model.decoder import Decoder
from recipes.model.init import init_weights
from recipes.model.weights import load_model, read_config, save_model

__all__ = [
    "Attend",
    "AttentionSpec",
    "Decoder",
    "ModelConfig",
    "Rope",
    "batched_attend",
    "decode_attend",
    "dense_attend",
    "init_weights",
    "load_model",
    "paged_attend",
    "read_config",
    "save_model",
]
