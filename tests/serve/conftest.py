"""One server for the tests that only talk to it."""

from collections.abc import Iterator

import pytest

from tests.serve.live_server import LiveServer, serving
from tests.serve.models import tiny_loaded


@pytest.fixture(scope="session")
def shared_server() -> Iterator[LiveServer]:
    with serving(tiny_loaded(), max_body_bytes=2**20) as live:
        yield live


@pytest.fixture
def server(shared_server: LiveServer) -> Iterator[LiveServer]:
    """The shared server; afterwards it must be idle, with every block free."""
    yield shared_server
    shared_server.wait_idle()
