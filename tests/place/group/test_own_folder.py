"""Temporary folders go with their owners; what killed ones leave is swept, and nothing else."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recipes.place.group import GroupSpec, Listener, exec_group, fork_group
from recipes.serve.own_folder import OWNER, OwnFolder, sweep
from tests.place.on_loop import LIMIT_S, on_loop


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextlib.contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """A fork that does its work and then waits to be killed; killed at the end."""
    done, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work()
            os.write(told, b"x")
            signal.pause()
        os._exit(1)
    os.close(told)
    try:
        assert os.read(done, 1) == b"x"
        yield pid
    finally:
        os.close(done)
        kill(pid)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_its_owners_until_removed(folder):
    made = OwnFolder("place")
    (Path(made.path) / "door").touch()
    assert sweep() == []
    assert oct(os.stat(made.path).st_mode & 0o777) == "0o700"
    made.remove()
    made.remove()
    with OwnFolder("steps") as path:
        assert names(folder) == [Path(path).name]
    assert names(folder) == []


def test_what_a_killed_owner_leaves_is_swept_while_others_live(folder):
    mine = OwnFolder("place")
    with forked(lambda: OwnFolder("place")) as first, forked(lambda: OwnFolder("group")):
        kept = names(folder)
        assert len(kept) == 3
        assert sweep() == []
        (Path(mine.path) / "door").touch()
        kill(first)
        (gone,) = sweep()
        assert names(folder) == [name for name in kept if name != Path(gone).name]
        assert gone != mine.path
    assert len(sweep()) == 1
    assert names(folder) == [Path(mine.path).name]


def test_what_is_inherited_keeps_a_folder(folder):
    """As a group keeps its own that outlives its front door for a moment."""
    made = OwnFolder("group")
    with forked(lambda: None):
        os.close(made.lock)
        made.lock = -1
        assert sweep() == []
    assert sweep() == [made.path]


def test_nothing_else_is_touched(folder, monkeypatch):
    (folder / "blocks-place-bare").mkdir()  # no owner's file: just made, or not ours at all
    (folder / "blocks-place-file").write_text("x")
    (folder / "other").mkdir()
    (folder / "other" / OWNER).touch()
    (folder / "blocks-place-link").symlink_to(folder / "other")
    strange = folder / "blocks-place-strange"
    strange.mkdir()
    (strange / OWNER).symlink_to(folder / "other" / OWNER)
    before = names(folder)
    assert sweep() == []
    assert names(folder) == before
    left = folder / "blocks-place-left"
    left.mkdir()
    (left / OWNER).touch()
    (left / "link").symlink_to(folder / "other")
    (left / "deep").mkdir()
    (left / "deep" / "file").touch()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert sweep() == [], "another user's"
    monkeypatch.undo()
    assert sweep(parent=str(folder)) == [str(left)]
    assert names(folder) == before
    assert (folder / "other" / OWNER).exists()


def test_a_group_that_cannot_be_started_leaves_nothing(folder, monkeypatch):
    spec = GroupSpec(group="g")
    monkeypatch.setattr(sys, "executable", str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError):
        exec_group(spec)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(ValueError, match=r"CUDA_VISIBLE_DEVICES: expected 3 devices or more"):
        exec_group(dataclasses.replace(spec, device="cuda", devices=(2,)))
    assert names(folder) == []


@on_loop
async def test_a_place_for_temporary_files_that_is_too_deep_for_sockets(folder, monkeypatch):
    deep = folder / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ValueError, match="set TMPDIR to a folder with a shorter path"):
        await Listener.open()
    assert names(deep) == []


@on_loop
async def test_a_front_door_that_is_killed_with_its_group_leaves_nothing_for_long(folder):
    def door() -> None:
        async def begin() -> None:
            listener = await Listener.open()
            handle = listener.start(GroupSpec(group="g"), fork_group)
            await handle.ready()
            os.kill(handle.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGSTOP)  # before it can tidy up

        asyncio.run(begin())

    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            door()
        os._exit(1)
    try:
        _, status = await asyncio.to_thread(os.waitpid, pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    finally:
        kill(pid)
    assert [name[:13] for name in names(folder)] == ["blocks-group-", "blocks-place-"]

    async def start() -> list[str]:
        """What is there while a front door listens."""
        listener = await Listener.open()
        try:
            found = names(folder)
            assert listener.address.removesuffix("/door") in [str(folder / one) for one in found]
            return found
        finally:
            await listener.close()

    async with asyncio.timeout(LIMIT_S):
        while len(await start()) > 1:  # what was killed may take a moment to end
            await asyncio.sleep(0.05)
    assert names(folder) == []
