import dataclasses

import pytest
import torch

from recipes.train import override, tiny, train
from recipes.train.config import TrainConfig, resolve
from recipes.train.layout import Layout, check_layout, even_layers, stage_layers
from recipes.train.order import row_bounds


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("pp=3", "num_layers (2)"),
        ("pp=2 layers_per_stage=1,2", "sum 2"),
        ("pp=2 layers_per_stage=2", "2 numbers"),
        ("pp=2 layers_per_stage=a,b", "commas"),
        ("schedule=gpipe", "pp=2"),
        ("pp=2 schedule=nonsense", "one_f_one_b"),
        ("pp=2 schedule=zb_v", "num_chunks"),
        ("chunks=2", "1 with pp=1"),
        ("dp=3", "lanes"),
        ("dp=2 lanes=1", "multiple of dp (2)"),
        ("lanes=3 batch_size=6", "power of two"),
        ("lanes=8", "multiple of lanes (8)"),
        ("microbatch=3", "divisor of the 4 rows"),
        ("slices=65", "context_len (64)"),
        ("slices=2 cuts=0,64", "in 2 slices"),
        ("slices=2 cuts=0,x,64", "numbers"),
        ("slices=3 cuts=0,9,9,64", "ascending"),
        ("compile=true slices=2", "slices > 1"),
        ("profile=5", "10:12"),
        ("trace=5:5", "10:12"),
        ("trace=1:2 lanes=2", "several lanes"),
        ("plan=/no/such/file.json", "plan verb"),
        ("tp=3", "num_heads (2)"),
        ("fsdp=true", "dp=2"),
        ("device=cuda dp=2", "torch finds no accelerator"),
        ("device=tpu", "cpu or cuda"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_process_starts(
    tmp_path, monkeypatch, settings, words
):
    def never(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr("recipes.train.run.launch", never)
    monkeypatch.setattr("recipes.train.run.run", never)
    with pytest.raises(ValueError, match=r".") as error:
        train(override(tiny(), settings.split()), out=tmp_path)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_every_rank_has_one_position_and_one_pipeline():
    layout = Layout(dp=2, pp=3, tp=2)
    places = [layout.position(rank) for rank in range(layout.num_ranks)]
    assert len(set(places)) == 12
    assert [layout.rank(*place) for place in places] == list(range(12))
    ranks = [rank for dp in range(2) for tp in range(2) for rank in layout.pipeline(dp, tp)]
    assert sorted(ranks) == list(range(12))
    assert layout.replicas(1, 1) == (3, 9)


@pytest.mark.parametrize("num_layers", range(1, 9))
def test_layers_are_spread_evenly_and_all(num_layers):
    for num_stages in range(1, num_layers + 1):
        counts = even_layers(num_layers, num_stages)
        assert sum(counts) == num_layers
        assert max(counts) - min(counts) <= 1
        config = dataclasses.replace(tiny(), num_layers=num_layers, pp=num_stages)
        parts = stage_layers(config)
        assert [layer for part in parts for layer in part] == list(range(num_layers))


@pytest.mark.parametrize(
    ("pp", "slices", "expected"), [(1, 1, 16), (2, 1, 2), (2, 4, 8), (4, 4, 4)]
)
def test_microbatches_fill_the_pipeline(pp, slices, expected):
    config = resolve(TrainConfig(batch_size=16, pp=pp, slices=slices))
    check_layout(config)
    assert config.microbatch == expected


def test_cuts_are_where_they_are_said_to_be():
    config = override(tiny(), ["slices=3", "cuts=0,30,50,64"])
    assert row_bounds(config) == (0, 30, 50, 64)


def test_an_accelerator_for_every_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = resolve(TrainConfig(dp=4, batch_size=4, device="cuda"))
    with pytest.raises(ValueError, match="at most 2 for as many accelerators, got 4"):
        check_layout(config)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun on two machines
    check_layout(config)
