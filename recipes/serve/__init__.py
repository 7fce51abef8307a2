"""Serve a model: offline with `LLM`, over HTTP with ``python -m recipes.serve``."""

from recipes.serve.config import EngineConfig, ServerConfig
from recipes.serve.engine import Engine
from recipes.serve.job import Job
from recipes.serve.llm import LLM
from recipes.serve.outputs import Completion, Delta, RequestOutput, TokenLogprob
from recipes.serve.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "Completion",
    "Delta",
    "Engine",
    "EngineConfig",
    "Job",
    "RequestOutput",
    "SamplingParams",
    "ServerConfig",
    "TokenLogprob",
]
