"""Groups that die, hang or babble: all that was asked is answered, and nothing stays behind."""

import asyncio
import os
import signal
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest

from recipes.place.group import (
    GroupLost,
    GroupSpec,
    Listener,
    LoadFailed,
    NotHosted,
    Replica,
    exec_group,
    fork_group,
    proof,
    run_group,
    worker,
)
from recipes.place.group.frames import Frames, frame
from recipes.place.group.local import visible_devices
from recipes.serve.engine import Engine
from tests.place.group.groups import SMALL, ask, collect, first_delta, running_group, save_models
from tests.place.group.storm import pid_of
from tests.place.group.test_group import endless
from tests.place.on_loop import LIMIT_S, eventually, on_loop
from tests.serve.ranks import is_alive
from tests.serve.test_engine import job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"), 0)[0]


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


def slowly(monkeypatch, seconds: float) -> None:
    """Steps of groups that are forked from now on take longer."""
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: (time.sleep(seconds), step(self))[1])


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
@on_loop
async def test_streams_of_a_group_that_is_killed_end(folder, monkeypatch, kill):
    slowly(monkeypatch, 0.01)
    async with running_group(folder) as handle:
        begun = await handle.submit("tiny-0", endless("begun", 2, n=2))
        await first_delta(begun)
        fresh = await handle.submit("tiny-0", [job("fresh", [7] * 200, max_tokens=4)])
        loading = asyncio.create_task(handle.load(Replica("other", str(folder), 64)))
        await asyncio.sleep(0)
        os.kill(pid_of(handle), kill)
        reason = await handle.wait_lost()
        assert reason.kind == "ended"
        words = "killed by SIGKILL" if kill == signal.SIGKILL else "exit status 0"
        assert words in reason.text
        for answer in (await collect(begun)).values():
            for completion in answer.completions:
                assert completion.finish_reason == "error"
                assert words in (completion.error or "")
        with pytest.raises(GroupLost, match=words):
            await collect(fresh)
        with pytest.raises((GroupLost, LoadFailed)):
            await loading
        for asked in (handle.submit("tiny-0", endless("x", 1)), handle.unload("tiny-0")):
            with pytest.raises(GroupLost):
                await asked
        assert handle.num_in_flight == 0
        assert not handle.is_alive


@on_loop
async def test_what_nobody_has_read_of_goes_on_at_another_group(folder, monkeypatch):
    slowly(monkeypatch, 0.01)
    begun = [
        *endless("greedy", 1, temperature=0.0),
        *endless("seeded", 1, temperature=1.0, seed=5, n=2),
        job("short", [5, 6], temperature=0.0, max_tokens=2),
    ]
    async with running_group(folder) as one, running_group(folder) as other:
        wanted = (await ask(other, "tiny-0", job("r", list(range(20, 190)), max_tokens=9)))[0]
        others = await ask(other, "tiny-0", *begun)
        again: list[asyncio.Task] = []

        def retry(stream, lost):
            assert lost.reason.kind == "ended"
            again.append(asyncio.create_task(other.submit("tiny-0", stream.jobs, stream=stream)))

        had_tokens = await one.submit("tiny-0", begun, on_lost=retry)
        counted: list[int] = []
        had_tokens.observe(lambda delta: counted.append(len(delta.token_ids)))
        had_tokens.on_restart(counted.clear)
        await eventually(lambda: len(counted) > 12)
        asked = [job("r", list(range(20, 190)), max_tokens=9)]
        stream = await one.submit("tiny-0", asked, on_lost=retry)
        os.kill(pid_of(one), signal.SIGKILL)
        (answer,) = (await collect(stream)).values()
        assert (answer.text, answer.token_ids) == (wanted.text, wanted.token_ids)
        assert [await task for task in again] == [had_tokens, stream]
        for found, expected in zip((await collect(had_tokens)).values(), others, strict=True):
            for got, made in zip(found.completions, expected.completions, strict=True):
                assert (got.text, got.token_ids) == (made.text, made.token_ids)
        assert sum(counted) == 60 + 2 * 60 + 2
        assert (one.num_in_flight, other.num_in_flight) == (0, 0)
        stream = await other.submit("tiny-0", endless("c", 1))
        await first_delta(stream)
        stream.cancel("client_left")
        assert other.num_in_flight == 0


@on_loop
async def test_a_group_that_is_stopped_or_hangs_is_given_up(folder, monkeypatch):
    async with running_group(folder, heartbeat_s=0.1, silence_s=3.0) as handle:
        await asyncio.sleep(3.5)
        assert handle.lost is None, "silence is not taken for death while heartbeats come"
        os.kill(pid_of(handle), signal.SIGSTOP)
        waiting = asyncio.create_task(handle.submit("tiny-0", endless("r", 1)))
        assert (await handle.wait_lost()).kind == "silent"
        with pytest.raises(GroupLost, match=r"no sign of life for 3 s"):
            await waiting
        await eventually(lambda: not is_alive(pid_of(handle)))
    slowly(monkeypatch, 600)
    async with running_group(folder, heartbeat_s=0.1, step_timeout_s=0.5) as handle:
        with pytest.raises(GroupLost, match="a step of model tiny-0 has taken"):
            await ask(handle, "tiny-0", job("r", [5]))
        assert handle.lost is not None
        assert handle.lost.kind == "stuck"


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)], ids=["tp2", "pp2"])
@on_loop
async def test_ranks_are_ended_with_their_group_and_replaced_within_it(folder, tp, pp):
    """With two stages, two batches are under way."""
    async with running_group(folder, tp=tp, pp=pp, devices=(0, 1)) as handle:
        ranks = descendants(pid_of(handle))
        assert len(ranks) == 2
        wanted = (await ask(handle, "tiny-0", *endless("unread", 1)))[0]
        again: list[asyncio.Task] = []

        def retry(stream, lost):
            assert "was killed by SIGKILL" in str(lost)
            again.append(asyncio.create_task(handle.submit("tiny-0", stream.jobs, stream=stream)))

        unread = await handle.submit("tiny-0", endless("unread", 1), on_lost=retry)
        stream = await handle.submit("tiny-0", endless("r", 2), on_lost=retry)
        await first_delta(stream)
        os.kill(ranks[1], signal.SIGKILL)
        ended = (await collect(stream)).values()
        assert len(ended) == 2
        for answer in ended:
            assert "was killed by SIGKILL" in (answer.completions[0].error or "")
        (answer,) = (await collect(unread)).values()
        assert answer.token_ids == wanted.token_ids
        assert await again.pop() is unread
        assert not again
        assert (await ask(handle, "tiny-0", job("again", [5, 6])))[0].finished
        assert handle.lost is None
        ranks = descendants(pid_of(handle))
        assert len(ranks) == 2
        os.kill(ranks[0], signal.SIGSTOP)  # one that notices nothing any more
        handle.process.kill()
        await handle.wait_lost()
        await eventually(lambda: not any(map(is_alive, [pid_of(handle), *ranks])))
        assert not Path(handle.process._folder.path).exists()  # type: ignore[attr-defined]


@on_loop
async def test_a_rank_that_stands_still_with_batches_under_way_is_given_up(folder):
    """What its model had is answered once; another model on the same devices goes on."""
    async with running_group(folder, pp=2, devices=(0, 1), step_timeout_s=1.5) as handle:
        ranks = descendants(pid_of(handle))
        await handle.load(Replica("other", str(folder), 64))
        stream = await handle.submit("tiny-0", endless("r", 3))
        await first_delta(stream)
        os.kill(ranks[0], signal.SIGSTOP)
        other = asyncio.create_task(ask(handle, "other", job("o", [5, 6], max_tokens=3)))
        answers = (await collect(stream)).values()
        for answer in answers:
            (completion,) = answer.completions
            assert "no step finished within 1.5 s" in (completion.error or "")
            assert completion.finish_reason == "error"
        assert len(answers) == 3
        assert (await other)[0].finished
        assert (await ask(handle, "tiny-0", job("again", [5, 6])))[0].finished
        assert (handle.lost, handle.num_in_flight) == (None, 0)


@on_loop
async def test_a_group_ends_when_its_front_door_is_gone_or_babbles(folder):
    for babble in (None, b"\x00\x00\x00\x03abc", b"\xff" * 8):
        async with running_group(folder) as handle:
            writer = handle._writer
            assert writer is not None
            if babble is None:
                writer.close()
            else:
                writer.write(babble)
            await eventually(lambda: handle.process.exit_code() is not None)
            assert (await handle.wait_lost()).kind == "ended"


@on_loop
async def test_a_front_door_that_does_not_read_for_a_while_misses_nothing(folder):
    asked = [
        job(f"r{at}", list(range(1, 200)), max_tokens=8, logprobs=20, prompt_logprobs=20)
        for at in range(24)
    ]
    async with running_group(folder, heartbeat_s=0.1, silence_s=30) as handle:
        assert handle._writer is not None
        expected = await ask(handle, "tiny-0", asked[0])
        stream = await handle.submit("tiny-0", asked)
        handle._writer.transport.pause_reading()  # type: ignore[attr-defined]
        stat = Path(f"/proc/{pid_of(handle)}/schedstat")
        used_ns = -(10**9)
        while (now_ns := int(stat.read_text().split()[0])) - used_ns > 20e6:
            used_ns = now_ns  # until it has nothing more to compute
            await asyncio.sleep(0.3)
        handle._writer.transport.resume_reading()  # type: ignore[attr-defined]
        answers = await collect(stream)
        for one in answers.values():
            assert one.token_ids == expected[0].token_ids
            assert one.prompt_logprobs == expected[0].prompt_logprobs
        assert (await ask(handle, "tiny-0", job("again", [5, 6])))[0].finished


def answer_as(group: str, key: bytes):
    """A connection of somebody who answers the front door's question."""

    def speak(sock: socket.socket) -> None:
        (asked,) = Frames().feed(sock.recv(1 << 16))
        question = msgspec.msgpack.decode(asked, type=proof.Question)
        sock.sendall(frame(msgspec.msgpack.encode(proof.answer(question, group, key))))

    return speak


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
@on_loop
async def test_who_does_not_prove_the_key_is_not_heard(folder, caplog, host):
    listener = await Listener.open(host)
    try:
        never = listener.start(GroupSpec(group="never"), lambda spec: Silent(), start_timeout_s=60)
        handle = listener.start(GroupSpec(group="g", **SMALL), fork_group)
        await handle.ready()
        assert key_of(never) != key_of(handle)
        attempts = [
            lambda sock: sock.sendall(b"GET / HTTP/1.1\r\n\r\n"),
            lambda sock: sock.sendall(frame(b"")),
            lambda sock: sock.shutdown(socket.SHUT_WR),
            answer_as("never", os.urandom(32)),
            answer_as("never", key_of(handle)),
            answer_as("nobody", key_of(never)),
            answer_as("g", key_of(handle)),  # it is there already
        ]
        for attempt in attempts:
            await asyncio.to_thread(hung_up_on, listener.address, attempt)
        assert caplog.text.count("was refused") == len(attempts)
        assert "somebody who calls himself group 'never'" in caplog.text
        assert not never.is_connected
        await handle.load(Replica("m", str(folder), 256))
        assert (await ask(handle, "m", job("r", [5, 6])))[0].finished
    finally:
        await listener.close()


def key_of(handle) -> bytes:
    return bytes.fromhex(handle.spec.key)


def hung_up_on(address: str, attempt) -> None:
    family = socket.AF_UNIX if address.startswith("/") else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(LIMIT_S)
        host, _, port = address.rpartition(":")
        sock.connect(address if family == socket.AF_UNIX else (host, int(port)))
        attempt(sock)
        try:
            while sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass


class Silent:
    """A process that does nothing."""

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def exit_code(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code = -9


@on_loop
async def test_babble_of_a_group_ends_that_group_only(folder, caplog):
    listener = await Listener.open()
    try:
        good = listener.start(GroupSpec(group="good", **SMALL), fork_group)
        bad = listener.start(GroupSpec(group="bad"), lambda spec: Silent())
        await good.ready()

        def babble(sock: socket.socket) -> None:
            answer_as("bad", key_of(bad))(sock)
            sock.recv(1 << 16)
            sock.sendall(frame(b"\x81\xa1x\x01"))

        waiting = asyncio.create_task(bad.ready())
        await asyncio.to_thread(hung_up_on, listener.address, babble)
        with pytest.raises(GroupLost, match="what is no message"):
            await waiting
        assert bad.lost is not None
        assert bad.lost.kind == "garbled"
        assert "group bad is given up: expected a report" in caplog.text
        await good.load(Replica("m", str(folder), 256))
        assert (await ask(good, "m", job("r", [5, 6])))[0].finished
    finally:
        await listener.close()


def test_a_group_sees_its_own_accelerators_only(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices((2, 3)) == "2,3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,4")
    assert visible_devices((0, 2)) == "7,4"


@on_loop
async def test_a_group_that_does_not_start_is_told_of(folder):
    listener = await Listener.open()
    try:
        for process, words in [(Silent(3), "exit status 3"), (Silent(), "within 0.1 s")]:
            spec = GroupSpec(group="g")
            handle = listener.start(spec, lambda spec, p=process: p, start_timeout_s=0.1)
            with pytest.raises(GroupLost, match=words):
                await handle.ready()
            assert handle.lost is not None
            assert handle.lost.kind == "not_started"
        handle = listener.start(GroupSpec(group="g"), lambda spec: Silent())
        with pytest.raises(ValueError, match="a name that is free"):
            listener.start(GroupSpec(group="g"), lambda spec: Silent())
        await handle.close()
        assert handle.lost is not None
        assert handle.lost.kind == "closed"
    finally:
        await listener.close()


@on_loop
async def test_groups_that_are_over_are_forgotten_when_others_start():
    listener = await Listener.open()
    try:
        for at in range(3):
            handle = listener.start(GroupSpec(group=f"g{at}"), fork_group)
            handle.process.kill()
            await handle.wait_lost()
            await eventually(lambda one=handle: one.is_over)
            assert len(listener._handles) == 1
    finally:
        await listener.close()


@on_loop
async def test_a_group_in_a_thread_returns_and_leaves_the_process_alone(folder, monkeypatch):
    monkeypatch.setattr(worker, "ORPHAN_S", 2.0)
    codes: list[int] = []
    orphaned: list[int] = []
    threads: list[threading.Thread] = []

    def start(spec):
        def run() -> None:
            codes.append(run_group(spec, orphaned=orphaned.append))

        threads.append(threading.Thread(target=run))
        threads[0].start()
        return Silent()

    listener = await Listener.open()
    try:
        handle = listener.start(GroupSpec(group="g", **SMALL), start)
        await handle.ready()
        await handle.load(Replica("m", str(folder), 256))
        assert (await ask(handle, "m", job("r", [5, 6])))[0].finished
        await handle.close(patience_s=0.1)
    finally:
        await listener.close()
        await asyncio.to_thread(threads[0].join, LIMIT_S)
    await asyncio.sleep(2.5)  # longer than its last resort would wait
    assert codes == [0]
    assert not orphaned


@pytest.mark.nightly
@on_loop
async def test_fresh_interpreters_serve_over_a_port(folder, tmp_path):
    listener = await Listener.open("127.0.0.1")
    try:
        spec = GroupSpec(group="g", tp=2, devices=(0, 1), **SMALL)
        handle = listener.start(spec, exec_group)
        await handle.ready()
        await handle.load(Replica("m", str(folder), 256))
        assert (await ask(handle, "m", job("r", [5, 6])))[0].finished
        ranks = descendants(pid_of(handle))
        assert len(ranks) == 2
        with pytest.raises(NotHosted):
            await handle.unload("other")
    finally:
        await listener.close()
    assert handle.process.exit_code() == 0
    await eventually(lambda: not any(map(is_alive, ranks)))
