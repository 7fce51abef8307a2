"""The process that searches for placements."""

import os
import signal
from pathlib import Path

from recipes.place.fleet.replanner import _process
from tests.place.on_loop import eventually, on_loop
from tests.serve.ranks import is_alive


@on_loop
async def test_a_search_ends_with_a_service_that_is_killed(tmp_path: Path):
    told = tmp_path / "told"
    service = os.fork()
    if service == 0:
        try:
            told.with_suffix(".new").write_text(str(_process().submit(os.getpid).result()))
            told.with_suffix(".new").rename(told)
            signal.pause()
        finally:
            os._exit(1)
    try:
        await eventually(told.exists)
        search = int(told.read_text())
        assert is_alive(search)
    finally:
        os.kill(service, signal.SIGKILL)
        os.waitpid(service, 0)
    await eventually(lambda: not is_alive(search))
