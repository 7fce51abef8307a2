"""Serve a model: offline with `LLM`, over HTTP with ``python -m recipes.serve``."""

try:
    from recipes.serve.config import EngineConfig, ServerConfig
    from recipes.serve.engine import Engine
    from recipes.serve.job import Job
    from recipes.serve.llm import LLM
    from recipes.serve.outputs import Completion, Delta, RequestOutput, TokenLogprob
    from recipes.serve.sampling_params import SamplingParams
except ModuleNotFoundError as error:
    error.add_note("recipes.serve needs an extra of this package: pip install -e '.[serve]'")
    raise

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
