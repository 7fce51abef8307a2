"""``python -m recipes.place serve``: many models behind one OpenAI-compatible front door."""

import argparse
import contextlib
import logging
import os
import socket
import sys
from pathlib import Path

from blocks._checks import check, fail
from blocks.sched.placement import Placement
from blocks.sched.workload import Workload
from recipes.place.arguments import config_of, config_parser
from recipes.place.config import PlaceConfig
from recipes.place.planning import (
    Change,
    PlaceTask,
    find_placement,
    read_placement,
    workload_at,
)
from recipes.place.planning.profiles_here import profiles_here

DESCRIPTION = """Serve the models of CONFIG on its devices.

The placement is the config's (serving.placement, or --placement), or is searched for first. Groups
are processes of this machine, or with launcher=ray of a Ray cluster. Loopback only, unless a key is
given; admin routes (/admin/load, /admin/unload, /admin/replan) need one anyway.
"""
KEY_VARIABLE = "LLM_BLOCKS_API_KEY"


def main(arguments: list[str]) -> int:
    """The verb; see ``--help``."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    more = [] if options.on is None else [f"launcher={options.on}"]
    more += [] if options.host is None else [f"host={options.host}"]
    more += [] if options.port is None else [f"port={options.port}"]
    more += [] if options.placement is None else [f"placement={options.placement}"]
    config = config_of(options, more)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return _serve(config, options)


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("serve", DESCRIPTION)
    add = parser.add_argument
    add("--placement", type=Path, help="file that plan wrote")
    add("--host", help="address to listen on (default: the config's)")
    add("--port", type=int, help="0 for any free one (default: the config's)")
    add("--api-key", help=f"wanted from clients; better set ${KEY_VARIABLE}")
    add("--allow-host", action="append", default=[], help="further Host header to accept")
    add("--on", choices=("local", "ray"), help="where groups run (default: the config's launcher)")
    add("--ray-address", help="of a Ray cluster that runs; default: one is started here")
    return parser


def _serve(config: PlaceConfig, options: argparse.Namespace) -> int:
    # torch and the HTTP stack, which the other verbs need not wait for
    from recipes.place.front import Server, build_lobby, first_of, launcher_of, routes
    from recipes.serve.config import ServerConfig

    auto, key = config.serving.placement == "auto", options.api_key
    # read before a model is timed, which takes minutes
    given = None if auto else read_placement(Path(config.serving.placement))
    server = ServerConfig(
        host=config.serving.host,
        port=config.serving.port,
        api_key=os.environ.get(KEY_VARIABLE) or None if key is None else key,
        allowed_hosts=tuple(options.allow_host),
    )
    with contextlib.closing(_bound(server.host, server.port)) as sock:
        launcher = launcher_of(config, options.ray_address)  # before anything else imports Ray
        try:
            task = _task(config)
            placement = _searched(task) if given is None else task.checked(given)
            planned = first_of(task.workload) if task.workload.num_requests else None
            lobby = build_lobby(config, task.profiles, placement, server, launcher, planned)
            print(_greeting(config, placement, sock), flush=True)
            Server(lobby, routes(server)).run(sockets=[sock])
        finally:
            launcher.close()
    return 0


def _bound(host: str, port: int) -> socket.socket:
    from recipes.serve.server import listen

    try:
        return listen(host, port)
    except OSError as error:
        got = f"{host}:{port}: {error.strerror}"
        raise fail("port", "an address to listen on", got, "choose another --port") from None


def _task(config: PlaceConfig) -> PlaceTask:
    """With the planned traffic; a placement that is given does without where there is none."""
    profiles, traffic = profiles_here(config, _say), None
    if config.serving.placement != "auto":
        try:
            traffic = workload_at(config, Change())
        except (ValueError, OSError) as error:
            _say(f"without planned traffic: {error}")
            traffic = Workload.of([model.name for model in config.models], [], duration_s=0.0)
    task = PlaceTask.of(config, profiles, traffic)
    hint = (
        "the door scores and continues text: leave out slo_s and time the folder of a model that "
        'generates (profile = "measure"); it scores with echo, logprobs and max_tokens 0'
    )
    check(task.generates, "models", "models that generate, to serve", "single-pass profiles", hint)
    return task


def _searched(task: PlaceTask) -> Placement:
    _say("searching for a placement ...")
    plan = find_placement(task, _say)
    _say(f"{plan.attainment:.1%} of the planned requests in time (simulated)")
    return plan.placement


def _greeting(config: PlaceConfig, placement: Placement, sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    models = ", ".join(model.name for model in config.models)
    return f"{placement}\nserving    {url}/v1  ({models})\npage       {url}/"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
