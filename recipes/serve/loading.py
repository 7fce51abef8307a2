"""From a folder to a running engine: what is loaded, and how much fits."""

import dataclasses
import time
from pathlib import Path

import torch

from blocks._checks import fail
from recipes.model import load_model, read_config
from recipes.model.bundled import bundled_model
from recipes.model.tokenizer import Tokenizer
from recipes.serve.config import EngineConfig
from recipes.serve.engine import Engine
from recipes.serve.memory import make_cache
from recipes.serve.model_runner import ModelRunner
from recipes.serve.parallel import ParallelRunner, Start, exec_ranks
from recipes.serve.parallel.torchrun import TorchrunRanks, in_torchrun
from recipes.serve.runner import Runner
from recipes.serve.sizes import format_bytes


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model ready to serve.

    folder: where it came from. engine: runs it. tokenizer: its own.
    weight_bytes: memory of the parameters. seconds: how long loading took.
    """

    folder: Path
    engine: Engine
    tokenizer: Tokenizer
    weight_bytes: int
    seconds: float

    @property
    def name(self) -> str:
        """The folder's name, as clients may use it."""
        return self.folder.resolve().name

    def explain(self) -> str:
        """What was loaded, how many tokens fit and why."""
        model, engine = self.engine.runner.model, self.engine
        lines = [
            f"model      {self.folder} ({model.family}, {model.num_layers} layers, vocabulary "
            f"{model.vocab_size}), {format_bytes(self.weight_bytes)} of weights in "
            f"{engine.runner.dtype}, loaded in {self.seconds:.1f} s",
            *(f"cache      {line}" for line in engine.runner.explain().splitlines()),
            f"requests   up to {engine.max_model_len} tokens each, {engine.config.max_num_seqs} "
            f"at once, {engine.config.token_budget} tokens per step",
        ]
        if engine.max_model_len < (engine.config.max_model_len or model.max_positions):
            lines.append("           (the cache holds no longer one; --kv-memory makes it larger)")
        return "\n".join(lines)


def load(
    model: str | Path | None = None,
    config: EngineConfig | None = None,
    *,
    start: Start | None = None,
    num_threads: int | None = None,
    host: str | None = None,
) -> Loaded:
    """Load a Hugging Face folder, or the bundled model, into an engine.

    Args:
        start: how the processes of ``tp`` and ``pp`` come to life; default fresh interpreters.
        num_threads, host: of these processes, see ``ParallelRunner``.

    Raises:
        ValueError: a folder or setting that cannot work, with what to do about it.
        MemoryError: keys and values that memory has no room for.
        RunnerLost: processes that do not start.
    """
    config = config or EngineConfig()
    started = time.perf_counter()
    folder = bundled_model() if model is None else Path(model)
    known = read_config(folder)
    if config.max_model_len is not None and config.max_model_len > known.max_positions:
        hint = "lower --max-model-len"
        limit = f"at most {known.max_positions}, the context the model was made for"
        raise fail("max_model_len", limit, config.max_model_len, hint)
    dtype = None if config.dtype is None else _dtype(config.dtype)
    _check_device(config.device)
    tokenizer = Tokenizer.from_folder(folder)
    runner: ModelRunner
    if config.tp * config.pp > 1 or start is not None or in_torchrun():
        runner = _over_ranks(folder, config, start, num_threads, host)
    else:
        decoder = load_model(folder, dtype, config.device, max_positions=config.max_model_len)
        decoder.requires_grad_(False).eval()
        runner = Runner(decoder, make_cache(decoder, config))
    engine = Engine(runner, detokenizers(tokenizer), config)
    return Loaded(folder, engine, tokenizer, runner.weight_bytes, time.perf_counter() - started)


def _over_ranks(
    folder: Path,
    config: EngineConfig,
    start: Start | None,
    num_threads: int | None,
    host: str | None,
) -> ModelRunner:
    """The model in processes of its own, or in those that torchrun has started."""
    if start is None and in_torchrun():
        ranks = TorchrunRanks(config.tp * config.pp)
        where = {"host": ranks.host, "rendezvous": ranks.rendezvous}
        return ParallelRunner(folder, config, start=ranks, **where)
    return ParallelRunner(
        folder, config, start=start or exec_ranks, num_threads=num_threads, host=host
    )


def detokenizers(tokenizer: Tokenizer):
    """Makes detokenizers the way the engine asks for them."""
    return lambda skip: tokenizer.detokenizer(skip_control_tokens=skip)


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise fail("dtype", " or ".join(known), name)
    return known[name]


def _check_device(name: str) -> None:
    """Refuse a device this machine or this build of torch does not have."""
    try:
        if torch.device(name).type == "meta":
            raise fail("device", "one that holds numbers", name)
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        hint = str(error).splitlines()[0]
        raise fail("device", "one that works here, such as cpu", name, hint) from None
