"""A decoder and its optimizers, saved under one pipeline layout and read under another."""

import dataclasses
import itertools

import pytest
import torch

from recipes.train import tiny
from recipes.train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    StoredCheckpoint,
    load_checkpoint,
    load_latest,
)
from recipes.train.model import build_decoder
from recipes.train.optim import build_optimizers
from recipes.train.tokenizer import train_tokenizer
from tests.train.checkpoint.ranks import on_ranks
from tests.train.checkpoint.samples import equal

CONFIG = dataclasses.replace(tiny(), num_layers=4, hidden_size=16, intermediate_size=24)
LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]  # pipeline ranks, replicas


@pytest.fixture(scope="module", params=["adamw", "muon"])
def tensors(request):
    """Parameters and moments after two updates."""
    config = dataclasses.replace(CONFIG, optimizer=request.param)
    decoder = build_decoder(config, train_tokenizer(["some text"], 300))
    optimizers = build_optimizers(dict(decoder.named_parameters()), config)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for parameter in decoder.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    found = {f"model.{name}": tensor for name, tensor in decoder.state_dict().items()}
    for optimizer in optimizers:
        for name, parameter in decoder.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{name}.{key}"] = value
    return found


def stage_of(name: str, num_stages: int) -> set[int]:
    """Stages that hold a tensor; a tied embedding is on the first and on the last."""
    if ".layers." in name:
        layer = int(name.split(".layers.")[1].split(".")[0])
        return {layer * num_stages // CONFIG.num_layers}
    return {0, num_stages - 1} if "embed" in name else {num_stages - 1}


def held_by(names, rank: int, num_stages: int) -> list[str]:
    return [name for name in names if rank % num_stages in stage_of(name, num_stages)]


@pytest.mark.parametrize(("before", "after"), itertools.permutations(LAYOUTS, 2))
def test_every_layout_is_read_by_every_other(tmp_path, tensors, before, after):
    def save(ranks):
        mine = {name: tensors[name] for name in held_by(tensors, ranks.rank, before[0])}
        with CheckpointWriter(tmp_path, ranks=ranks) as writer:
            writer.save(Checkpoint(2, mine, {"step": 2}))

    def load(ranks):
        found = load_latest(tmp_path, ranks=ranks)
        assert isinstance(found, StoredCheckpoint)
        mine = held_by(found.tensors, ranks.rank, after[0])
        targets = {name: torch.full_like(tensors[name], torch.nan) for name in mine}
        found.tensors.read_into(targets)
        return targets

    assert on_ranks(before[0] * before[1], save) == [None] * (before[0] * before[1])
    seen = set()
    for found in on_ranks(after[0] * after[1], load):
        assert isinstance(found, dict), found
        assert all(equal(tensor, tensors[name]) for name, tensor in found.items())
        seen |= set(found)
    assert seen == set(tensors)


def test_files_hold_what_their_rank_holds_and_nothing_twice(tmp_path, tensors):
    def save(ranks):
        mine = {name: tensors[name] for name in held_by(tensors, ranks.rank, 2)}
        with CheckpointWriter(tmp_path, ranks=ranks) as writer:
            writer.save(Checkpoint(2, mine, {}))

    on_ranks(4, save)
    found = load_checkpoint(tmp_path / "step-00000002")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    sizes = {path.name: path.stat().st_size for path in found.folder.glob("rank-*")}
    assert len(sizes) == 4
    assert total < sum(sizes.values()) < 1.5 * total + 40_000  # and headers
    for name, stored in found.tensors.index.items():
        assert len(stored.pieces) == 1, name
        assert int(stored.pieces[0].file[5:10]) % 2 in stage_of(name, 2), name
