import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.train.checkpoint import (
    Checkpoint,
    CheckpointFailed,
    CheckpointWriter,
    LocalDisk,
    list_checkpoints,
    load_checkpoint,
    load_latest,
)
from tests.train.checkpoint.ranks import on_ranks
from tests.train.checkpoint.samples import make, same
from tests.train.checkpoint.test_save import FullDisk


class SlowDisk(LocalDisk):
    """Writes tensors only once it is let to."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def write(self, path, parts):
        if path.suffix == ".safetensors":
            self.reached.set()
            assert self.go.wait(20)
        super().write(path, parts)


def test_the_run_goes_on_while_a_copy_is_written(tmp_path):
    disk = SlowDisk()
    with CheckpointWriter(tmp_path, disk=disk) as writer:
        wanted = make(1)
        living = {name: tensor.clone() for name, tensor in wanted.tensors.items()}
        writer.save(Checkpoint(1, living, dict(wanted.state)))
        assert disk.reached.wait(20)
        assert not list_checkpoints(tmp_path)
        for tensor in living.values():
            tensor.zero_()
        writer.check_invariants()
        disk.go.set()
    assert same(load_latest(tmp_path), wanted)


def test_a_save_waits_for_the_one_before(tmp_path):
    disk = SlowDisk()
    writer = CheckpointWriter(tmp_path, disk=disk)
    writer.save(make(1))
    assert disk.reached.wait(20)
    begun = threading.Event()

    def save_second():
        writer.save(make(2))
        begun.set()

    second = threading.Thread(target=save_second)
    second.start()
    assert not begun.wait(0.1)
    disk.go.set()
    second.join()
    writer.close()
    for step in (1, 2):
        assert same(load_checkpoint(tmp_path / f"step-{step:08d}"), make(step))


@pytest.mark.parametrize(
    "then",
    [
        lambda writer: writer.save(make(2)),
        lambda writer: writer.wait(),
        lambda writer: writer.close(),
        lambda writer: writer.__exit__(None),
    ],
)
def test_a_failure_in_the_background_is_raised_once_at_the_next_call(tmp_path, then):
    writer = CheckpointWriter(tmp_path, disk=FullDisk())
    writer.save(make(1))
    with pytest.raises(CheckpointFailed, match=r"step 1 not written.*No space left") as caught:
        then(writer)
    assert isinstance(caught.value.__cause__, OSError)
    writer.close()
    assert not list(tmp_path.iterdir())


def test_a_rank_that_is_gone_fails_the_save_of_those_that_are_left(tmp_path):
    def work(ranks):
        disk = SlowDisk()
        writer = CheckpointWriter(tmp_path, ranks=ranks, disk=disk)
        writer.save(Checkpoint(1, {f"layer{ranks.rank}": torch.ones(3)}, {}))
        if ranks.rank == 1:
            ranks.leave()
        disk.go.set()
        writer.wait()

    errors = on_ranks(3, work)
    assert all(isinstance(error, CheckpointFailed) for error in errors), errors
    assert all("step 1 not written" in str(error) for error in errors)
    assert load_latest(tmp_path) is None


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_save(tmp_path):
    def run():
        with CheckpointWriter(tmp_path, disk=FullDisk()) as writer:
            writer.save(make(1))
            raise KeyError

    with pytest.raises(KeyError):
        run()


def test_without_background_the_save_is_done_on_return(tmp_path):
    writer = CheckpointWriter(tmp_path, background=False)
    writer.save(make(1))
    assert same(load_latest(tmp_path), make(1))
    with pytest.raises(CheckpointFailed):
        CheckpointWriter(tmp_path / "full", background=False, disk=FullDisk()).save(make(1))


def test_misuse_is_raised_by_save_itself_on_all_ranks(tmp_path):
    def work(ranks):
        with CheckpointWriter(tmp_path, ranks=ranks) as writer:
            writer.save(make(1))
            writer.save(make(1))

    errors = on_ranks(2, work)
    assert all("not saved yet" in str(error) for error in errors), errors


@given(
    num_ranks=st.integers(1, 3),
    pauses=st.lists(st.sampled_from([0.0, 0.001, 0.003]), min_size=1, max_size=4),
    keep=st.integers(1, 3),
)
def test_what_is_kept_is_what_was_there_at_each_save(tmp_path_factory, num_ranks, pauses, keep):
    root = tmp_path_factory.mktemp("writer")

    def work(ranks):
        layer = torch.zeros(64)
        shared = torch.zeros(8)
        with CheckpointWriter(root, keep=keep, ranks=ranks) as writer:
            for step, pause in enumerate(pauses, 1):
                layer.fill_(step + 100 * ranks.rank)
                shared.fill_(step)
                tensors = {f"layer{ranks.rank}": layer, "shared": shared}
                writer.save(Checkpoint(step, tensors, {"step": step}))
                writer.check_invariants()
                time.sleep(pause * ranks.rank)

    assert on_ranks(num_ranks, work) == [None] * num_ranks
    kept = list_checkpoints(root)
    assert len(kept) == min(keep, len(pauses))
    for folder in kept:
        found = load_checkpoint(folder)
        assert found.state == {"step": found.step}
        assert found.tensors["shared"].tolist() == [found.step] * 8
        for rank in range(num_ranks):
            assert set(found.tensors[f"layer{rank}"].tolist()) == {found.step + 100 * rank}
