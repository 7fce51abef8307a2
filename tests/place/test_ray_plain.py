"""What of the placement on Ray needs no Ray: numbers of devices, what is reserved, refusals."""

import os
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.place.ray import Seats, bundles_of, library
from recipes.place.ray.interface import interface_of, speak_at
from recipes.place.ray.library import keep_to_this_machine, ray_library, start_here
from recipes.place.ray.log_file import last_lines
from recipes.place.ray.outcome import told_in
from recipes.serve.parallel.start import UNKNOWN
from recipes.serve.parallel.worker_group import _how

NODES = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3))


@given(st.lists(NODES, max_size=8))
def test_numbers_of_devices_stay_while_nodes_come_and_go(rounds):
    seats = Seats()
    for alive in rounds:
        before, seats = seats, seats.after(alive)
        seats.check_invariants()
        there = seats.nodes()
        assert {node: len(devices) for node, devices in there.items()} == {
            node: count for node, count in alive.items() if count
        }
        for node, devices in before.nodes().items():
            if alive.get(node) == len(devices):
                assert there[node] == devices, "a node that stays keeps its numbers"
        assert seats.after(alive) == seats
        assert [seat.devices for seat in seats.seats][: len(before.seats)] == [
            seat.devices for seat in before.seats
        ]
        grown = seats.num_devices - before.num_devices
        came = [node for node in there if before.nodes().get(node) != there[node]]
        if came and grown == 0:
            assert all(set(there[node]) <= set(range(before.num_devices)) for node in came)
        lying = {device for devices in there.values() for device in devices}
        assert sorted(lying | set(seats.lost)) == list(range(seats.num_devices))
        assert not lying & set(seats.lost)
        for device in range(seats.num_devices):
            node = seats.node_of(device)
            assert (node is None) == (device in seats.lost)
            assert node is None or device in there[node]


def test_a_node_that_comes_takes_the_first_empty_seat_of_its_size():
    seats = Seats().after({"a": 1, "b": 2, "c": 2}).after({"a": 1})
    assert seats.lost == (1, 2, 3, 4)
    seats = seats.after({"a": 1, "d": 3, "e": 2})
    assert seats.nodes() == {"a": (0,), "d": (5, 6, 7), "e": (1, 2)}
    assert seats.node_of(99) is None


def test_every_bundle_names_the_node_of_its_device():
    seats = Seats().after({"a": 2, "b": 2})
    one = bundles_of((1, 0), seats)
    assert (one.strategy, one.nodes, one.resources) == ("STRICT_PACK", ("a",), ({"CPU": 1.0},) * 2)
    two = bundles_of((3, 0), seats, device="cuda", cpus=0.5)
    assert (two.strategy, two.nodes) == ("PACK", ("b", "a"))
    assert two.resources == ({"GPU": 1.0, "CPU": 0.5},) * 2
    assert two.labels == ({"ray.io/node-id": "b"}, {"ray.io/node-id": "a"})
    with pytest.raises(ValueError, match=r"devices: expected some that lie on nodes.*\[2, 7\]"):
        bundles_of((0, 2, 7), seats.after({"a": 2}))


def test_without_ray_asking_for_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"Ray: .*none; pip install -e '\.\[cluster\]'"):
        ray_library()


def test_a_ray_that_asks_for_no_token_is_refused(monkeypatch):
    old = types.ModuleType("ray")
    old.__version__ = "2.51.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", old)
    with pytest.raises(ValueError, match=r"Ray: expected version 2\.52 or newer, got 2\.51\.1"):
        ray_library()


def test_what_is_started_here_is_told_to_ask_for_a_token(monkeypatch):
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    keep_to_this_machine()
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    keep_to_this_machine()
    assert os.environ["RAY_AUTH_TOKEN"] == token, "one token a process"


def test_how_a_process_of_ray_ended_is_told_in_a_sentence():
    text = (
        "The actor died unexpectedly before finishing this task.\n\tpid: 7\nThe actor is dead "
        "because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes "
        "include: (1) the process was killed"
    )
    expected = "Worker unexpectedly exits with a connection error code 2. End of file."
    assert told_in(text) == expected
    assert "is gone" in _how(UNKNOWN)


def test_the_log_of_a_process_is_found_by_its_number(tmp_path):
    for name, text in {
        "worker-abc-01000000-42.out": ":job_id:01000000\n:actor_name:GroupActor\nhello\n",
        "worker-abc-01000000-42.err": "".join(f"line {at}\n" for at in range(5)),
        "worker-abc-01000000-142.err": "somebody else\n",
        "raylet.err": "42\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert last_lines(str(tmp_path), 42, 3) == "line 3\nline 4\nhello"
    assert last_lines(str(tmp_path), 7, 3) == ""


def test_ranks_speak_over_the_interface_of_their_node_s_address(monkeypatch):
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    speak_at("203.0.113.77")
    assert not any(name in os.environ for name in names)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    speak_at("127.0.0.1")
    assert [os.environ[name] for name in names] == ["lo", "ib0"], "what the user says stays"


@pytest.mark.parametrize("trouble", ["it does not start", "it listens to other machines", None])
def test_the_files_of_a_ray_of_our_own_are_in_a_folder_that_goes(trouble, tmp_path, monkeypatch):
    stopped = []

    def init(*, _temp_dir: str, **_) -> None:
        assert os.path.isdir(_temp_dir)
        if trouble == "it does not start":
            raise ConnectionError(trouble)

    address = "10.0.0.1" if trouble == "it listens to other machines" else "127.0.0.1"
    ray = types.ModuleType("ray")
    ray.__dict__.update(
        __version__="99.0",
        init=init,
        shutdown=lambda: stopped.append(1),
        util=types.SimpleNamespace(get_node_ip_address=lambda: address),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(library, "_short_folder", lambda: str(tmp_path))
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "0")  # to be taken back
    if trouble is None:
        _, folder = start_here(2, device="cpu", cpus=1.0)
        assert [path.name[:11] for path in tmp_path.iterdir()] == ["blocks-ray-"]
        folder.remove()
    else:
        with pytest.raises((ConnectionError, ValueError)):
            start_here(2, device="cpu", cpus=1.0)
        assert bool(stopped) == (trouble == "it listens to other machines")
    assert list(tmp_path.iterdir()) == []
