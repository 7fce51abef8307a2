import itertools
import random
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.train.checkpoint import (
    MANIFEST,
    Checkpoint,
    CheckpointDamaged,
    load_checkpoint,
    load_latest,
    read_state,
    save_checkpoint,
)
from tests.train.checkpoint.ranks import box_of, on_ranks
from tests.train.checkpoint.samples import equal, make, same


def shares(ranks, checkpoint: Checkpoint) -> Checkpoint:
    """Every second tensor on this rank of two; the rng on both."""
    names = sorted(checkpoint.tensors)
    mine = {*names[ranks.rank :: 2], "rng"}
    tensors = {name: checkpoint.tensors[name] for name in mine}
    return Checkpoint(checkpoint.step, tensors, checkpoint.state)


def save_by_two(root: Path, checkpoint: Checkpoint) -> Path:
    done = on_ranks(2, lambda r: save_checkpoint(root, shares(r, checkpoint), ranks=r))
    assert done[0] == done[1]
    assert isinstance(done[0], Path), done
    return done[0]


def damage(data: bytes, offset: int, kind: str) -> bytes:
    if kind == "cut":
        return data[:offset]
    return data[:offset] + bytes([data[offset] ^ (1 << offset % 8)]) + data[offset + 1 :]


def damage_every_byte(root: Path, kind: str) -> int:
    """Damage a checkpoint at one byte after another; how many times it was found, which is all."""
    folder = save_by_two(root, make(1))
    assert same(load_checkpoint(folder), make(1))
    files = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(files) == 5
    found = 0
    for path, data in files.items():
        for offset in range(len(data)):
            path.write_bytes(damage(data, offset, kind))
            with pytest.raises(CheckpointDamaged):
                load_checkpoint(folder)
            found += 1
        path.write_bytes(data)
    assert same(load_checkpoint(folder), make(1))
    return found


@pytest.mark.parametrize("kind", ["cut", "flip"])
def test_damage_at_any_byte_is_found(tmp_path, kind):
    assert damage_every_byte(tmp_path, kind) > 1500


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_all_ranks_take_the_checkpoint_before_a_damaged_one(tmp_path, num_ranks):
    save_by_two(tmp_path, make(1))
    newest = save_by_two(tmp_path, make(2))
    files = {path: path.read_bytes() for path in sorted(newest.iterdir())}
    choice = random.Random(num_ranks)
    for trial in range(20):
        path = choice.choice(list(files))
        offset = choice.randrange(len(files[path]))
        path.write_bytes(damage(files[path], offset, ("cut", "flip")[trial % 2]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = on_ranks(num_ranks, lambda ranks: load_latest(tmp_path, ranks=ranks))
        assert all(same(one, make(1)) for one in found), found  # type: ignore[arg-type]
        assert ["passed over" in str(w.message) for w in caught] == [True]
        path.write_bytes(files[path])
    found = on_ranks(num_ranks, lambda ranks: load_latest(tmp_path, ranks=ranks))
    assert all(same(one, make(2)) for one in found)  # type: ignore[arg-type]


def test_a_missing_file_is_damage(tmp_path):
    folder = save_checkpoint(tmp_path, make(1))
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointDamaged, match=r"state\.json"):
        load_checkpoint(folder)
    assert (folder / MANIFEST).exists()


def test_no_folder_means_no_checkpoint(tmp_path):
    assert load_latest(tmp_path / "nothing") is None


def test_a_rank_that_does_not_see_the_folder_ends_the_load_on_all(tmp_path):
    save_checkpoint(tmp_path, make(1))

    def work(ranks):
        return load_latest(tmp_path if ranks.rank != 1 else tmp_path / "mine", ranks=ranks)

    errors = on_ranks(3, work)
    assert all("disk that all ranks share" in str(error) for error in errors), errors


def test_a_checkpoint_of_another_format_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.train.checkpoint.manifest.FORMAT", 1)
    save_checkpoint(tmp_path, make(1))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="another version"):
        load_latest(tmp_path)


def test_the_state_alone_is_that_of_the_newest_checkpoint_that_has_it_whole(tmp_path):
    assert read_state(tmp_path) is None
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make(step))
    assert read_state(tmp_path) == make(3).state
    state = tmp_path / "step-00000003" / "state.json"
    state.write_bytes(state.read_bytes().replace(b"3.1", b"3.2"))
    assert read_state(tmp_path) == make(2).state
    (tmp_path / "step-00000002" / MANIFEST).unlink()
    assert read_state(tmp_path) == make(1).state


def test_targets_must_be_those_of_the_checkpoint(tmp_path):
    stored = load_checkpoint(save_checkpoint(tmp_path, make(1))).tensors
    with pytest.raises(ValueError, match="among them"):
        stored.read_into({"model.other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"\[7, 5\], got \[5, 7\]"):
        stored.read_into({"model.weight": torch.zeros(5, 7)})
    with pytest.raises(ValueError, match="dtype"):
        stored.read_into({"model.weight": torch.zeros(7, 5).double()})
    weight = torch.zeros(5, 7).T.requires_grad_()
    stored.read_into({"model.weight": weight})
    assert equal(weight.detach(), make(1).tensors["model.weight"])


@st.composite
def grids(draw, shape):
    """A cut of a tensor into boxes: their offsets and shapes."""
    cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    boxes = [((), ())]
    for edges in cuts:
        spans = list(itertools.pairwise(edges))
        boxes = [((*o, a), (*n, b - a)) for o, n in boxes for a, b in spans]
    return boxes


@st.composite
def layouts(draw):
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    return shape, draw(grids(shape)), draw(grids(shape))


@given(layout=layouts(), num_ranks=st.integers(1, 3), seed=st.integers(0, 9))
def test_any_layout_is_read_into_any_other(tmp_path_factory, layout, num_ranks, seed):
    shape, written, read = layout
    root = tmp_path_factory.mktemp("layouts")
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    placed = [random.Random(seed).randrange(num_ranks) for _ in written]

    def work(ranks):
        mine = [box for box, rank in zip(written, placed, strict=True) if rank == ranks.rank]
        return save_checkpoint(root, Checkpoint(1, {"w": box_of(whole, *mine)}, {}), ranks=ranks)

    folder = on_ranks(num_ranks, work)[0]
    assert isinstance(folder, Path), folder
    stored = load_checkpoint(folder).tensors
    assert equal(stored["w"], whole)
    part = box_of(torch.full(shape, torch.nan), *read)
    stored.read_into({"w": part})
    for box, wanted in zip(part.boxes, box_of(whole, *read).boxes, strict=True):
        assert equal(box.values, wanted.values)
