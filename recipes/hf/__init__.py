"""Blocks inside Hugging Face transformers models."""

from recipes.hf.patch_llama import patch, patched, unpatch

__all__ = ["patch", "patched", "unpatch"]
