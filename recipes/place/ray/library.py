"""Ray itself, where it is installed; and a Ray of this machine alone, where none is running."""

import importlib
import ipaddress
import os
import secrets
import tempfile
from typing import Any

from blocks._checks import fail
from recipes.serve.own_folder import OwnFolder, sweep

MIN_VERSION = (2, 52)
"""The first Ray whose own ports can ask for a token."""


def ray_library() -> Any:
    """The module ``ray``.

    Raises:
        ValueError: it is not installed, or older than what this needs.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise fail("Ray", "an installed one", "none", "pip install -e '.[cluster]'") from error
    version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if version < MIN_VERSION:
        hint = "pip install --upgrade -e '.[cluster]'"
        raise fail("Ray", "version {}.{} or newer".format(*MIN_VERSION), ray.__version__, hint)
    return ray


def keep_to_this_machine() -> None:
    """Before Ray is imported: what it starts listens on loopback, and asks for a token.

    By itself Ray listens on every interface on Linux, and on loopback elsewhere; the variable that
    says which is named after the others. Values that are set already stay. A cluster that is
    running elsewhere is joined without this.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if os.environ["RAY_AUTH_MODE"] == "token" and not named:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this process and its children


def start_here(num_devices: int, *, device: str, cpus: float) -> tuple[Any, OwnFolder]:
    """Start a Ray of one node on this machine, with as many devices, and join it.

    It ends with this process. Its files are in a folder of its own, readable by this user alone,
    which is the caller's to remove.

    Raises:
        ValueError: Ray was imported before with other settings, and would listen to other machines.
    """
    keep_to_this_machine()
    ray = ray_library()
    sweep(_short_folder())
    folder = OwnFolder("ray", _short_folder())
    try:
        ray.init(
            address="local",
            num_cpus=int(num_devices * cpus + 0.999),
            num_gpus=num_devices if device == "cuda" else 0,
            include_dashboard=False,
            object_store_memory=80 << 20,  # nothing of ours goes through it; the least Ray allows
            _temp_dir=folder.path,
            log_to_driver=True,
            logging_level="warning",
        )
        _check_is_private(ray)
    except BaseException:
        folder.remove()
        raise
    return ray, folder


def _check_is_private(ray: Any) -> None:
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback:
        ray.shutdown()
        hint = "make the RayCluster before anything imports ray, or name the address of a cluster"
        raise fail("Ray", "one that listens on loopback alone", address, hint)


def _short_folder() -> str | None:
    """Where temporary files go, unless the paths of Ray's sockets would be too long there."""
    return None if len(tempfile.gettempdir()) <= 20 else "/tmp"
