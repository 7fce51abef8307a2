"""The front door of a cluster: OpenAI's routes over many models, a keeper, metrics, a page."""

from recipes.place.front.admin import routes
from recipes.place.front.launch import Launcher, Launchpad, launcher_of
from recipes.place.front.lobby import Lobby
from recipes.place.front.service import build_lobby, first_of
from recipes.serve.server import Server

__all__ = [
    "Launcher",
    "Launchpad",
    "Lobby",
    "Server",
    "build_lobby",
    "first_of",
    "launcher_of",
    "routes",
]
