"""What fits with some cuts is found, though no cuts of a coarse grid are among them."""

import random

import numpy as np
import pytest

from blocks.pipeline import LayerSums, partition_mesh, submeshes
from blocks.pipeline.inter_op import DoesNotFit, InterOpPlan
from tests.pipeline.inter_op.test_every_cut import SCHEDULES, equal_layers, random_sums


def asked(*given: object, **settings: object) -> InterOpPlan | None:
    """The plan, if any fits."""
    try:
        return partition_mesh(*given, effort=0, **settings)  # type: ignore[arg-type]
    except DoesNotFit:
        return None


@pytest.mark.parametrize("schedules", [["gpipe"], ["one_f_one_b", "zb_h1"]])
def test_the_last_layer_that_fits_has_room(schedules: list[str]):
    """800 layers with room for 100 on each of 8 devices, and a grid of nine layers."""
    ask = {"num_microbatches": 1, "schedules": schedules}
    even = asked(equal_layers(800, 1.0), 1, 8, memory_cap_bytes=100.0, **ask)
    assert even is not None
    assert even.bounds == (0, 100, 200, 300, 400, 500, 600, 700, 800)
    assert even.makespan_s == 2400
    assert even.bound_s <= 2400 * (1 + 1e-9)
    with pytest.raises(DoesNotFit, match="more, got too little even for 8 stages"):
        partition_mesh(equal_layers(800, 1.0), 1, 8, memory_cap_bytes=99.0, effort=0, **ask)


def compare(seeds: range) -> tuple[int, int, int]:
    """How many fit and are found, how many of these do not fit on the grid, how many are missed."""
    fit = between = missed = 0
    for seed in seeds:
        rng = random.Random(seed)
        given = random_sums(rng)
        ask = {
            "num_microbatches": rng.choice([1, 2, 4, 8]),
            "schedules": [rng.choice(SCHEDULES)],
            "memory_cap_bytes": rng.choice([25.0, 40.0, 60.0, 80.0, 100.0]),
            "idle_devices": rng.random() < 0.4,
        }
        every = asked(*given, **ask)
        found = asked(*given, max_cells=rng.choice([1, 2]), **ask)
        missed += found is None and every is not None
        if found is None:
            continue
        assert every is not None, seed
        fit += 1
        cell = asked(*given, max_cells=1, bound_every_cut=False, **ask)
        between += cell is not None and cell.num_stages > 1
        held = max(stage.peak_bytes for stage in found.stages)
        assert held <= ask["memory_cap_bytes"] * (1 + 1e-9), seed
        assert found.bound_s <= every.makespan_s * (1 + 1e-9), seed
    return fit, between, missed


def test_what_fits_is_found_from_any_grid():
    fit, between, missed = compare(range(60))
    assert fit > 15
    assert between > 2
    assert missed == 0


def test_devices_of_every_kind_are_counted():
    """One device of a kind has room for all layers; there is no second one of it."""
    kinds = ("small", "big")
    shapes = submeshes(2, 1, kinds=kinds)
    ones = np.ones((20, len(shapes), 1))
    sums = LayerSums(shapes, ["only"], {"forward_s": ones, "fixed_bytes": ones})
    ask = {"num_microbatches": 2, "schedules": ["1f1b"], "kinds": kinds, "max_cells": 1}
    for caps, fits in (({"small": 1.0, "big": 19.0}, True), ({"small": 1.0, "big": 18.0}, False)):
        found = asked(sums, 2, 1, memory_cap_bytes=caps, **ask)
        assert (found is not None) == fits
        if found is not None:
            held = {stage.shape.kind: stage.stop - stage.first for stage in found.stages}
            assert held == {"small": 1, "big": 19}


@pytest.mark.nightly
def test_what_fits_is_found_from_any_grid_of_many():
    """A few are missed whose layers need more or less than others beside the rest."""
    fit, _, missed = compare(range(1000, 1800))
    assert fit > 200
    assert missed <= 0.01 * fit
