"""The command line of ``python -m recipes.serve``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from recipes.serve.config import EngineConfig, ServerConfig
from recipes.serve.sizes import parse_bytes
from recipes.settings import add_settings, described, in_any_order, override

KEY_VARIABLE = "LLM_BLOCKS_API_KEY"
DESCRIPTION = """Serve a model to OpenAI's clients.

python -m recipes.serve                              # the bundled model on 127.0.0.1:8000
python -m recipes.serve FOLDER --kv-memory 256MiB    # any Hugging Face folder of a known family
python -m recipes.serve FOLDER tp=2 pp=2             # over four processes

Exit status: 0 stopped; 2 settings that do not fit; 4 a model that cannot be loaded, or memory that
is not there; 5 an address that cannot be had.
"""


def parser() -> argparse.ArgumentParser:
    """All options; defaults come from `EngineConfig` and `ServerConfig`."""
    engine, server = EngineConfig(), ServerConfig()
    made = argparse.ArgumentParser(
        prog="python -m recipes.serve",
        description=DESCRIPTION,
        epilog=described(engine),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument

    def number(name: str, what: str, default: float) -> None:
        add(name, type=type(default), default=default, help=f"{what} (default {default})")

    add("model", nargs="?", help="folder in the Hugging Face layout (default: the bundled model)")
    add_settings(made, "fields of EngineConfig, below; they win over options")
    add("--host", default=server.host, help="address to listen on (default %(default)s)")
    add("--port", type=int, default=server.port, help="0 for any free one (default %(default)s)")
    add("--kv-memory", type=_bytes, help="memory for keys and values, such as 256MiB")
    add("--kv-dtype", default=engine.kv_dtype, help="auto, fp8 or int8 (default %(default)s)")
    add("--max-model-len", type=int, help="longest prompt plus output in tokens")
    number("--max-num-seqs", "sequences in a step", engine.max_num_seqs)
    number("--token-budget", "tokens in a step", engine.token_budget)
    number("--max-waiting", "longest queue", engine.max_waiting)
    add("--policy", default=engine.policy, help="fcfs or priority (default %(default)s)")
    add("--dtype", help="float32, bfloat16 or float16 (default: the checkpoint's)")
    add("--device", default=engine.device, help="cpu or cuda (default %(default)s)")
    add("--tp", type=int, default=engine.tp, help="processes that share every layer (default 1)")
    add("--pp", type=int, default=engine.pp, help="stages that share the layers (default 1)")
    add("--pp-slices", type=int, help="equal runs of a step's tokens (default: by measured times)")
    add("--pp-batches", type=int, help="batches in the stages at a time (default: one a stage)")
    number("--step-timeout", "seconds of a step of several processes", engine.step_timeout)
    add("--api-key", help=f"wanted from clients; better set ${KEY_VARIABLE}")
    add("--model-name", help="name clients use (default: the folder's)")
    add("--allow-host", action="append", default=[], help="further Host header to accept")
    number("--request-timeout", "seconds of a whole answer", server.request_timeout)
    number("--drain-timeout", "seconds for what runs, after SIGTERM", server.drain_timeout)
    return made


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a first ``key=value`` is a setting and no model, unless it is a folder."""
    options = parser().parse_intermixed_args(arguments)
    if options.model:
        options.model, options.settings = in_any_order(options.model, options.settings)
    if options.model and "=" in options.model and not Path(options.model).exists():
        options.settings.insert(0, options.model)
        options.model = None
    return options


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def engine_config(options: argparse.Namespace) -> EngineConfig:
    """The engine's settings; ``key=value`` ones are laid over the options."""
    config = EngineConfig(
        kv_bytes=options.kv_memory,
        kv_dtype=options.kv_dtype,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        token_budget=options.token_budget,
        max_waiting=options.max_waiting,
        policy=options.policy,
        dtype=options.dtype,
        device=options.device,
        tp=options.tp,
        pp=options.pp,
        pp_slices=options.pp_slices,
        pp_batches=options.pp_batches,
        step_timeout=options.step_timeout,
    )
    return override(config, options.settings, see="recipes/serve/config.py")


def server_config(options: argparse.Namespace) -> ServerConfig:
    return ServerConfig(
        host=options.host,
        port=options.port,
        api_key=os.environ.get(KEY_VARIABLE) or None
        if options.api_key is None
        else options.api_key,
        model_name=options.model_name,
        allowed_hosts=tuple(options.allow_host),
        request_timeout=options.request_timeout,
        drain_timeout=options.drain_timeout,
    )
