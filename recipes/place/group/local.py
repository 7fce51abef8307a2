"""Groups on this machine: how their processes come to life, and how they are ended for certain."""

import contextlib
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Protocol

from blocks._checks import check
from recipes.place.group.run import run_group
from recipes.place.group.spec import GroupSpec
from recipes.serve.own_folder import OwnFolder
from recipes.serve.parallel import Start, exec_ranks, fork_ranks
from recipes.serve.parallel.start import environment, hand_over


class GroupProcess(Protocol):
    """A process that was started and may have ended."""

    def exit_code(self) -> int | None:
        """None while it runs; -9 for one that signal 9 killed."""
        ...

    def kill(self) -> None:
        """End it and its rank processes, without waiting for their end."""
        ...


StartGroup = Callable[[GroupSpec], GroupProcess]
"""Starts a process that calls ``run_group``, and returns at once."""


class LocalProcess:
    """A group and its ranks, which share a process group and a folder for temporary files.

    Args:
        pid: of the group's process. poll: its exit code, None while it runs.
        folder: removed once it has ended, should the process not have come to it.
    """

    def __init__(self, pid: int, poll: Callable[[], int | None], folder: OwnFolder) -> None:
        self.pid = pid
        self._poll, self._folder = poll, folder
        self._killed = False

    def exit_code(self) -> int | None:
        code = self._poll()
        if code is not None:
            self.kill()  # ranks that have not noticed
        return code

    def kill(self) -> None:
        if not self._killed:
            self._killed = True  # once: later the number may be another's
            for end in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(self.pid, signal.SIGKILL)
        self._folder.remove()


def exec_group(spec: GroupSpec) -> LocalProcess:
    """A fresh interpreter, which costs the import of torch, and inherits the lock of its folder."""
    variables = environment(spec.num_threads)
    if spec.device == "cuda":
        variables["CUDA_VISIBLE_DEVICES"] = visible_devices(spec.devices)
    folder = OwnFolder("group")
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "recipes.place.group", folder.path],
            stdin=subprocess.PIPE,
            env={**variables, "TMPDIR": folder.path},
            pass_fds=(folder.lock,),
            process_group=0,
        )
    except OSError:
        folder.remove()
        raise
    hand_over(spec.to_json(), process)
    return LocalProcess(process.pid, process.poll, folder)


def visible_devices(devices: tuple[int, ...]) -> str:
    """``CUDA_VISIBLE_DEVICES`` of a process that has some of those that this one has."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = mine.split(",") if mine else None
    if names is not None:
        wanted = f"{max(devices) + 1} devices or more"
        check(max(devices) < len(names), "CUDA_VISIBLE_DEVICES", wanted, mine)
    return ",".join(str(at) if names is None else names[at] for at in devices)


def fork_group(spec: GroupSpec) -> LocalProcess:
    """A fork of this process, on the CPU only: nothing is imported again, its ranks are forks too.

    For tests and small programs: whatever this process has open stays open in it.
    """
    folder = OwnFolder("group")
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)  # signals must not wake the loop of the process it came from
            tempfile.tempdir = folder.path
            be_group(spec.to_json(), folder.path, fork_ranks)
        os._exit(1)
    with contextlib.suppress(OSError):  # both sides, for it must be so before either goes on
        os.setpgid(pid, pid)
    return LocalProcess(pid, _Waited(pid).poll, folder)


class _Waited:
    """The exit code of a child."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has asked
                pid, status = self._pid, 0
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


def be_group(text: str, folder: str | None = None, start_ranks: Start = exec_ranks) -> None:
    """The whole life of a process that is a group and nothing else; does not return.

    Args:
        text: a ``GroupSpec`` as JSON. folder: of its own, removed at the end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front door, which may drain, says when
    logging.basicConfig(format="%(levelname)s %(message)s")
    gc.freeze()  # what was imported need not be looked at when a model is unloaded
    code = 0
    try:
        run_group(GroupSpec.from_json(text), start_ranks)
    except BaseException:
        logging.getLogger("recipes.place").exception("a group ends")
        code = 1
    if folder is not None:  # whoever started it may be gone
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)  # what torch would still tidy up may wait for ranks that are gone
