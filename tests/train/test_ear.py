import os
import signal
import socket
import threading
from multiprocessing.connection import Client

import pytest

from recipes.train.ear import Ear


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("stays here")


def test_what_is_said_is_handed_on_in_order_and_nothing_is_lost_at_the_end():
    logs, notes = [], []
    ear = Ear(logs.append, notes.append)

    def speak(worker: int) -> None:
        say = ear.mouth.open()
        for number in range(50):
            say("log", (worker, number))
        say("note", worker)

    threads = [threading.Thread(target=speak, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ear.close()
    ear.close()
    assert sorted(notes) == [0, 1, 2]
    for worker in range(3):
        assert [n for w, n in logs if w == worker] == list(range(50))
    assert ear.error is None


@pytest.mark.parametrize("introduced", [False, True])
def test_a_worker_killed_while_it_speaks_leaves_the_others_heard(introduced):
    heard = []
    ear = Ear(heard.append, None)
    pid = os.fork()
    if not pid:
        try:
            if introduced:
                client = Client(ear.mouth.address, authkey=ear.mouth.key)
                os.write(client.fileno(), b"\x00\x00\x10\x00half a message")
            else:
                socket.socket(socket.AF_UNIX).connect(ear.mouth.address)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    say = ear.mouth.open()
    say("log", 1)
    del say
    ear.close()
    assert heard == [1]


def test_the_error_is_the_first_of_the_last_attempt(monkeypatch):
    ear = Ear(None, None)
    for attempt, text in ((0, "lost"), (1, "first"), (1, "second")):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        ear.mouth.open()("error", ValueError(text))
        while attempt != ear._failed_attempt:
            pass
    ear.close()
    assert repr(ear.error) == "ValueError('first')"


def test_an_error_that_cannot_travel_is_told_in_words():
    ear = Ear(None, None)
    ear.mouth.open()("error", Unpicklable("this"))
    ear.close()
    assert isinstance(ear.error, RuntimeError)
    assert "this" in str(ear.error)
