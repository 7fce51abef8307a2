"""What operators may do while the service runs; only where a key is configured."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from blocks.sched.placement import Placement
from recipes.place.front.lobby import Lobby
from recipes.serve import errors
from recipes.serve.app import Endpoint
from recipes.serve.config import ServerConfig
from recipes.serve.door import Door
from recipes.serve.errors import ApiError
from recipes.serve.service import json_response


class ModelBody(msgspec.Struct):
    """POST /admin/load and /admin/unload.

    devices: of the group to unload from; None for all.
    """

    model: str
    devices: list[int] | None = None


def routes(config: ServerConfig) -> list[tuple[str, str, Endpoint]]:
    """Routes beside OpenAI's; without a key they answer 403."""
    table: list[tuple[str, str, Endpoint]] = [
        ("POST", "/admin/load", load),
        ("POST", "/admin/unload", unload),
        ("POST", "/admin/replan", replan),
    ]
    if config.api_key is not None:
        return table
    return [(method, path, _forbidden) for method, path, _ in table]


async def _forbidden(door: Door, request: Request) -> Any:
    message = "admin routes need a server with an API key; start it with --api-key"
    raise ApiError(403, message, code="admin_needs_key")


async def load(door: Door, request: Request) -> Response:
    """POST /admin/load: see that a model has a replica; answers before it is loaded."""
    lobby = _lobby(door)
    body = await door.read(request, ModelBody)
    door.of(body.model, {})
    fleet = lobby.desk.fleet
    fleet.ask(body.model, lobby.keeper.clock())
    if not fleet.want(body.model, lobby.keeper.clock(), at_once=True):
        raise errors.unavailable(f"no device has room for {body.model!r}")
    lobby.keeper.wake()
    return _placement(fleet.desired)


async def unload(door: Door, request: Request) -> Response:
    """POST /admin/unload: take a model from a group, or from all; what they have is answered."""
    lobby = _lobby(door)
    body = await door.read(request, ModelBody)
    door.of(body.model, {})
    fleet = lobby.desk.fleet
    groups = []
    for group in fleet.desired.groups:
        here = body.devices is None or tuple(body.devices) == group.devices
        groups.append(group.without(body.model) if here and body.model in group.models else group)
    if tuple(groups) == fleet.desired.groups:
        where = "any group" if body.devices is None else f"devices {body.devices}"
        raise errors.bad_request(f"model: expected one that is on {where}", "model")
    fleet.desired = Placement(tuple(groups))
    lobby.keeper.wake()
    return _placement(fleet.desired)


async def replan(door: Door, request: Request) -> Response:
    """POST /admin/replan: search for a better placement now; answers when the search is over."""
    lobby = _lobby(door)
    found = await lobby.replanner.look()
    if found is None:
        raise errors.unavailable("there is no traffic to go by yet")
    told = {"changed": found.switch is not None, "stay": found.stay, "go": found.go}
    return json_response(told | {"placement": lobby.desk.fleet.desired.to_json()})


def _lobby(door: Door) -> Lobby:
    assert isinstance(door, Lobby), type(door)
    return door


def _placement(placement: Placement) -> Response:
    return json_response({"placement": placement.to_json()})
