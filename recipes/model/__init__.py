"""Decoder families written against an ``attend`` callable; Hugging Face folders in and out."""

from recipes.model.attend import Attend, batched_attend, dense_attend
from recipes.model.config import AttentionSpec, ModelConfig, Rope
from recipes.model.decoder import Decoder
from recipes.model.init import init_weights

__all__ = [
    "Attend",
    "AttentionSpec",
    "Decoder",
    "ModelConfig",
    "Rope",
    "batched_attend",
    "dense_attend",
    "init_weights",
]
