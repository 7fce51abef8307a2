import errno
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from recipes.train.checkpoint import (
    MANIFEST,
    Checkpoint,
    CheckpointFailed,
    LocalDisk,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from tests.train.checkpoint.faulty_disk import Crash, FaultyDisk
from tests.train.checkpoint.ranks import box_of, on_ranks
from tests.train.checkpoint.samples import make, same


def num_operations(root: Path) -> int:
    disk = FaultyDisk(-1, "crash", random.Random(0))
    save_checkpoint(root, make(1))
    save_checkpoint(root, make(2))
    save_checkpoint(root, make(3), keep=2, disk=disk)
    shutil.rmtree(root)
    return disk.count


def check_fault(root: Path, fail_at: int, fault: str, seed: int) -> None:
    """After the fault the old or the new checkpoint is there complete, and a retry succeeds."""
    old = [make(1), make(2)]
    new = make(3)
    for checkpoint in old:
        save_checkpoint(root, checkpoint)
    disk = FaultyDisk(fail_at, fault, random.Random(seed))
    with pytest.raises((Crash, OSError)):
        save_checkpoint(root, new, keep=2, disk=disk)
    disk.cut_power()
    found = load_latest(root)
    assert same(found, old[-1]) or same(found, new)
    if not same(found, new):
        save_checkpoint(root, new, keep=2)
    assert same(load_latest(root), new)
    shutil.rmtree(root)


@pytest.mark.parametrize("fault", ["crash", "torn", "full", "error"])
def test_a_fault_at_any_operation_leaves_the_old_or_the_new_checkpoint(tmp_path, fault):
    root = tmp_path / "checkpoints"
    count = num_operations(root)
    assert count >= 10
    for fail_at in range(count):
        for seed in range(2):
            check_fault(root, fail_at, fault, seed)


@pytest.mark.nightly
def test_many_torn_writes(tmp_path):
    root = tmp_path / "checkpoints"
    count = num_operations(root)
    for seed in range(500):
        check_fault(root, seed % count, "torn", seed)


def test_what_is_saved_survives_a_power_cut(tmp_path):
    for seed in range(10):
        root = tmp_path / str(seed)
        disk = FaultyDisk(-1, "crash", random.Random(seed))
        for step in (1, 2):
            save_checkpoint(root, make(step), disk=disk)
            disk.cut_power()
            assert same(load_latest(root), make(step))


class FullDisk(LocalDisk):
    """No room for tensors."""

    def write(self, path, parts):
        if path.suffix == ".safetensors":
            super().write(path, [next(iter(parts))])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(path, parts)


def test_a_full_disk_says_so_and_gives_the_room_back(tmp_path):
    save_checkpoint(tmp_path, make(1))
    with pytest.raises(CheckpointFailed, match=r"step 2 not written.*No space left") as caught:
        save_checkpoint(tmp_path, make(2), disk=FullDisk())
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert same(load_latest(tmp_path), make(1))


def test_a_disk_full_on_one_rank_fails_the_save_on_all(tmp_path):
    def work(ranks):
        part = Checkpoint(1, {f"layer{ranks.rank}": torch.ones(3)}, {})
        save_checkpoint(tmp_path, part, ranks=ranks, disk=FullDisk() if ranks.rank == 2 else None)

    errors = on_ranks(3, work)
    assert all(isinstance(error, CheckpointFailed) for error in errors), errors
    assert all("rank 2" in str(error) for error in errors)
    assert not list(tmp_path.iterdir())


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        save_checkpoint(tmp_path, make(step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000011"]


def test_damaged_checkpoints_of_later_steps_push_out_no_intact_one(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make(step))
    for folder in list_checkpoints(tmp_path)[1:]:
        (folder / MANIFEST).write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="passed over"):
        assert same(load_latest(tmp_path), make(1))
    save_checkpoint(tmp_path, make(2), keep=2)
    with pytest.warns(RuntimeWarning, match="step-00000003"):
        assert same(load_latest(tmp_path), make(2))
    assert same(load_checkpoint(tmp_path / "step-00000001"), make(1))


def test_an_intact_checkpoint_is_not_written_over(tmp_path):
    save_checkpoint(tmp_path, make(1))
    with pytest.raises(ValueError, match="not saved yet"):
        save_checkpoint(tmp_path, make(1))


def test_a_damaged_checkpoint_is_replaced(tmp_path):
    folder = save_checkpoint(tmp_path, make(1))
    (folder / MANIFEST).write_bytes(b"")
    save_checkpoint(tmp_path, make(1))
    assert same(load_checkpoint(folder), make(1))


WHOLE = torch.arange(12.0).view(4, 3)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (WHOLE, WHOLE[:2], "stands for one tensor"),
        (WHOLE, WHOLE.double(), "stands for one tensor"),
        (WHOLE, box_of(WHOLE, ((0, 0), (4, 3))), "stands for one tensor"),
        (box_of(WHOLE, ((0, 0), (2, 3))), box_of(WHOLE, ((2, 0), (1, 3))), "fill|missing|validate"),
        (box_of(WHOLE, ((0, 0), (2, 3))), box_of(WHOLE, ((1, 0), (2, 3))), "overlap|validate"),
        ("text", WHOLE, "a tensor"),
        (WHOLE, torch.ones(2, dtype=torch.complex128), "dtype"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_on_every_rank(tmp_path, first, second, words):
    def work(ranks):
        part = Checkpoint(1, {"weight": (first, second)[ranks.rank]}, {})
        save_checkpoint(tmp_path, part, ranks=ranks)

    for error in on_ranks(2, work):
        assert isinstance(error, ValueError), error
        assert re.search(words, str(error)), error
    assert not list(tmp_path.iterdir())


def test_a_single_rank_cannot_save_a_piece_as_the_whole(tmp_path):
    with pytest.raises(ValueError, match="missing"):
        save_checkpoint(tmp_path, Checkpoint(1, {"w": box_of(WHOLE, ((0, 0), (2, 3)))}, {}))


def test_ranks_at_different_steps_are_refused(tmp_path):
    errors = on_ranks(2, lambda ranks: save_checkpoint(tmp_path, make(ranks.rank), ranks=ranks))
    assert all("same on every rank" in str(error) for error in errors), errors


def test_replicas_are_written_once_and_the_work_is_shared(tmp_path):
    tensors = {f"layer{i}": torch.full((100,), float(i)) for i in range(8)}
    on_ranks(4, lambda ranks: save_checkpoint(tmp_path, Checkpoint(1, tensors, {}), ranks=ranks))
    sizes = [path.stat().st_size for path in (tmp_path / "step-00000001").glob("rank-*")]
    assert len(sizes) == 4
    assert max(sizes) == min(sizes) < 1200
