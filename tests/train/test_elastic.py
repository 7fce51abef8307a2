import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.train import tiny
from recipes.train.elastic import fit_world, restart_count, world_size


def layout(config) -> tuple[int, int, int]:
    return config.dp, config.pp, config.tp


def make(dp=1, pp=1, tp=1, lanes=None, **other):
    base = dataclasses.replace(tiny(), batch_size=8, num_layers=4)
    return dataclasses.replace(base, dp=dp, pp=pp, tp=tp, lanes=lanes, **other)


@pytest.mark.parametrize(
    ("config", "num_ranks", "expected"),
    [
        (make(dp=2, pp=2), 4, (2, 2, 1)),
        (make(dp=2, pp=2), 2, (1, 2, 1)),  # the pipeline stays
        (make(dp=1, pp=2), 1, (1, 1, 1)),
        (make(dp=1, pp=2), 4, (1, 4, 1)),  # one lane cannot be dealt to two replicas
        (make(dp=1, pp=2, lanes=4), 4, (2, 2, 1)),
        (make(dp=4, pp=1), 2, (2, 1, 1)),
        (make(dp=4, pp=4, lanes=4), 2, (2, 1, 1)),
        (make(dp=2, pp=1, tp=2), 2, (1, 1, 2)),
        (make(dp=1, pp=4), 3, (1, 3, 1)),
    ],
)
def test_the_nearest_layout_is_taken(config, num_ranks, expected):
    assert layout(fit_world(config, num_ranks)) == expected


@given(
    dp=st.sampled_from([1, 2, 4]),
    pp=st.integers(1, 4),
    tp=st.integers(1, 2),
    lanes=st.sampled_from([None, 4, 8]),
    num_ranks=st.integers(1, 20),
)
def test_a_layout_found_has_the_processes_and_keeps_the_numbers(dp, pp, tp, lanes, num_ranks):
    config = make(dp, pp, tp, lanes)
    try:
        found = fit_world(config, num_ranks)
    except ValueError:
        fitting = [
            (d, p)
            for d in range(1, num_ranks + 1)
            for p in range(1, config.num_layers + 1)
            if d * p * tp == num_ranks and (lanes or dp) % d == 0
        ]
        assert not fitting
        return
    assert found.dp * found.pp * found.tp == num_ranks
    assert found.tp == tp
    assert (found.lanes or found.dp) == (lanes or dp)
    assert found.pp <= found.num_layers
    kept = dataclasses.replace(found, dp=dp, pp=pp, lanes=lanes)
    assert kept == config


def test_another_pipeline_takes_another_schedule_and_cut():
    config = make(pp=2, schedule="zb_v", chunks=2, layers_per_stage="1,1,1,1")
    found = fit_world(config, 1)
    assert (found.schedule, found.chunks, found.layers_per_stage) == ("auto", 1, None)
    same = fit_world(dataclasses.replace(config, dp=2), 2)
    assert (same.schedule, same.chunks, same.layers_per_stage) == ("zb_v", 2, "1,1,1,1")


def test_what_cannot_be_laid_out_is_refused():
    with pytest.raises(ValueError, match="another number"):
        fit_world(make(), 7)
    with pytest.raises(ValueError, match="plan"):
        fit_world(make(pp=2, plan="plan.json"), 1)


def test_what_torchrun_says():
    assert restart_count({}) == 0
    assert restart_count({"TORCHELASTIC_RESTART_COUNT": "2"}) == 2
    assert world_size({}) is None
    assert world_size({"WORLD_SIZE": "4"}) == 4
