import errno
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from recipes.train.checkpoint import (
    MANIFEST,
    Checkpoint,
    CheckpointDamaged,
    LocalDisk,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)


def make(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model.weight": torch.randn(7, 5, generator=generator),
        "model.half": torch.randn(3, generator=generator).bfloat16(),
        "rng": torch.randint(0, 255, (16,), generator=generator, dtype=torch.uint8),
    }
    return Checkpoint(step, tensors, {"losses": [step + 0.1], "note": "é"})


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return (
        one.step == other.step
        and one.state == other.state
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


class Crash(BaseException):
    """The process is gone."""


class FaultyDisk(LocalDisk):
    """A disk that fails at one operation, and forgets what was not flushed when power is cut.

    fault: "crash" before the operation, "torn" after part of a write, "full" ENOSPC after part of
    a write, "error" EIO.
    """

    def __init__(self, fail_at: int, fault: str, choice: random.Random) -> None:
        self.fail_at, self.fault, self.choice = fail_at, fault, choice
        self.count = 0
        self.unsynced: dict[Path, str] = {}  # files and renames not known to be on the device
        self.renamed: list[tuple[Path, Path]] = []

    def _reached(self) -> bool:
        self.count += 1
        return self.count - 1 == self.fail_at

    def _fail(self):
        if self.fault == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.fault == "error":
            raise OSError(errno.EIO, "Input/output error")
        raise Crash

    def make_folder(self, folder):
        if self._reached():
            self._fail()
        super().make_folder(folder)

    def write(self, path, data):
        if self._reached():
            if self.fault in ("torn", "full"):
                super().write(path, data[: self.choice.randrange(len(data) + 1)])
                self.unsynced[path] = "data"
            self._fail()
        super().write(path, data)
        self.unsynced[path] = "data"

    def sync(self, path):
        if self._reached():
            self._fail()
        super().sync(path)
        self.unsynced.pop(path, None)
        self.renamed = [(old, new) for old, new in self.renamed if new.parent != path]

    def rename(self, old, new):
        if self._reached():
            self._fail()
        super().rename(old, new)
        self.renamed.append((old, new))

    def remove(self, folder):
        if self._reached():
            for path in sorted(folder.glob("*")):  # part of the files are gone
                if self.choice.random() < 0.5:
                    path.unlink()
            self._fail()
        super().remove(folder)

    def cut_power(self) -> None:
        """Lose, by chance, what was never flushed: tails of files, and renames."""
        for path in self.unsynced:
            moved = next((new / path.name for old, new in self.renamed if path.parent == old), path)
            target = moved if moved.exists() else path
            if target.exists() and self.choice.random() < 0.7:
                data = target.read_bytes()
                target.write_bytes(data[: self.choice.randrange(len(data) + 1)])
        for old, new in reversed(self.renamed):
            if new.exists() and self.choice.random() < 0.5:
                new.rename(old)


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
    try:
        save_checkpoint(root, new, keep=2, disk=disk)
        failed = False
    except (Crash, OSError):
        failed = True
    assert failed, (fail_at, disk.count)
    disk.cut_power()
    found = load_latest(root)
    assert found is not None
    assert same(found, old[-1]) or same(found, new), found.step
    if not same(found, new):
        save_checkpoint(root, new, keep=2)
    again = load_latest(root)
    assert again is not None
    assert same(again, new)
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


def damage_everywhere(tmp_path: Path, num_trials: int, seed: int) -> None:
    root = tmp_path / "checkpoints"
    save_checkpoint(root, make(1))
    newest = save_checkpoint(root, make(2))
    files = {path: path.read_bytes() for path in sorted(newest.iterdir())}
    choice = random.Random(seed)
    for trial in range(num_trials):
        path = choice.choice(list(files))
        data = bytearray(files[path])
        if trial % 3 == 0:
            data = data[: choice.randrange(len(data))]
        else:
            data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointDamaged):
            load_checkpoint(newest)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = load_latest(root)
        assert found is not None
        assert same(found, make(1))
        assert "passed over" in str(caught[0].message)
        path.write_bytes(files[path])
    found = load_latest(root)
    assert found is not None
    assert same(found, make(2))


def test_flips_and_cuts_are_found_and_the_previous_checkpoint_is_taken(tmp_path):
    damage_everywhere(tmp_path, num_trials=200, seed=0)


@pytest.mark.nightly
def test_a_thousand_flips_and_cuts(tmp_path):
    damage_everywhere(tmp_path, num_trials=1000, seed=1)


def test_a_missing_file_is_damage(tmp_path):
    folder = save_checkpoint(tmp_path, make(1))
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointDamaged, match=r"state\.json"):
        load_checkpoint(folder)
    assert (folder / MANIFEST).exists()


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        save_checkpoint(tmp_path, make(step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000011"]


def test_an_intact_checkpoint_is_not_written_over(tmp_path):
    save_checkpoint(tmp_path, make(1))
    with pytest.raises(ValueError, match="not saved yet"):
        save_checkpoint(tmp_path, make(1))


def test_a_damaged_checkpoint_is_replaced(tmp_path):
    folder = save_checkpoint(tmp_path, make(1))
    (folder / MANIFEST).write_bytes(b"")
    save_checkpoint(tmp_path, make(1))
    assert same(load_checkpoint(folder), make(1))


def test_no_folder_means_no_checkpoint(tmp_path):
    assert load_latest(tmp_path / "nothing") is None
