"""``python -m recipes.serve [MODEL]``: load a model and answer OpenAI's clients."""

import logging
import sys

from recipes.serve.arguments import engine_config, parse, server_config
from recipes.serve.async_engine import AsyncEngine
from recipes.serve.loading import load
from recipes.serve.model_runner import RunnerLost
from recipes.serve.parallel.torchrun import be_torchrun_rank, in_torchrun, is_engine
from recipes.serve.server import Server, build_service, greeting, listen


def main() -> int:
    try:
        return run()
    except KeyboardInterrupt:  # before there is a server, which ends by itself
        print("interrupted", file=sys.stderr)
        return 130


def run() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if in_torchrun() and not is_engine():
        be_torchrun_rank()
    options = parse()
    try:
        server = server_config(options)
        engine = engine_config(options)
    except ValueError as error:
        return _fail(error, 2)
    try:
        sock = listen(server.host, server.port)
    except OSError as error:
        return _fail(f"{server.host}:{server.port}: {error.strerror}; choose another --port", 5)
    print("loading", options.model or "the bundled model", "...", file=sys.stderr, flush=True)
    try:
        loaded = load(options.model, engine)
    except (ValueError, MemoryError, RunnerLost) as error:
        return _fail(error, 4)
    try:
        service = build_service(loaded, server)
        print(loaded.explain(), greeting(service, sock), sep="\n", flush=True)
        Server(service).run(sockets=[sock])
        assert isinstance(service.engine, AsyncEngine)
        service.engine.join(2)  # after a forced exit it may still be in a step
    finally:
        loaded.engine.close()
    return 0


def _fail(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
