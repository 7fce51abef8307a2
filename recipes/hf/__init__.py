"""Blocks inside Hugging Face transformers models."""
