"""Tables of stage costs: dense, asked for when needed, and added up from layers."""

import json

import numpy as np
import pytest

from blocks.pipeline import LayerSums, LazyStages, StageCost, StageTable, partition_mesh, submeshes
from blocks.pipeline.inter_op.grid import near

SHAPES = submeshes(1, 4)
OPTIONS = ("keep", "recompute")


def layers(num_layers: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    size = (num_layers, len(SHAPES), len(OPTIONS))
    return {name: rng.integers(1, 30, size=size).astype(float) for name in StageCost._fields}


def summed(found: dict, first: int, stop: int, shape: int, option: int) -> StageCost:
    values = {name: found[name][first:stop, shape, option] for name in found}
    whole = {name: float(v.sum()) for name, v in values.items()}
    return StageCost(**{**whole, "transient_bytes": float(values["transient_bytes"].max())})


def transfer(layer, before, after):
    return (float(layer + before.size), float(after.size))


def test_layers_add_up_and_the_largest_transient_counts():
    found = layers(7)
    found["forward_s"][3, 1, 0] = np.inf  # this layer cannot run so, nor can a stage with it
    table = LayerSums(SHAPES, OPTIONS, found, transfer=transfer).at((0, 2, 3, 7))
    for i, first in enumerate(table.bounds):
        for j, stop in enumerate(table.bounds):
            for m in range(len(SHAPES)):
                for o in range(len(OPTIONS)):
                    exists = np.isfinite(table.cells["forward_s"][i, j, m, o])
                    cannot = (m, o) == (1, 0) and first <= 3 < stop
                    assert exists == (first < stop and not cannot)
                    if exists:
                        assert table.cost(i, j, m, o) == summed(found, first, stop, m, o)
    assert table.send_s[1, 2, 0] == 2 + 4
    assert table.return_s[1, 2, 0] == 1
    assert not table.send_s[[0, -1]].any()


def test_lazy_stages_are_asked_for_once_and_only_where_needed():
    found, asked = layers(12), []

    def stage(first, stop, shape, option):
        asked.append((first, stop, shape, option))
        if option == "recompute" and shape.size == 1:
            return None
        return summed(found, first, stop, SHAPES.index(shape), OPTIONS.index(option))

    lazy = LazyStages(12, SHAPES, OPTIONS, stage, transfer=transfer)
    few = lazy.at((0, 4, 8, 12))
    assert lazy.num_evaluated == len(asked) == 6 * len(SHAPES) * len(OPTIONS)
    assert np.isinf(few.cells["forward_s"][0, 1, 0, 1])
    every = lazy.at(range(13))
    assert len(asked) == len(set(asked)) == lazy.num_evaluated
    some = every.at((0, 4, 8, 12))
    for name, values in few.cells.items():
        assert np.array_equal(values, some.cells[name])
    assert np.array_equal(few.send_s, some.send_s)


def test_tables_go_through_json():
    table = LayerSums(SHAPES, OPTIONS, layers(4), transfer=transfer).at((0, 1, 4))
    again = StageTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again.bounds == table.bounds
    assert again.shapes == table.shapes
    for name, values in table.cells.items():
        assert np.array_equal(values, again.cells[name])
    assert np.array_equal(again.return_s, table.return_s)
    with pytest.raises(ValueError, match="stage table: expected the keys"):
        StageTable.from_json({})


def test_bounds_that_are_none_are_refused():
    source = LayerSums(SHAPES, OPTIONS, layers(4))
    for bounds in ((0, 4, 3), (1, 4), (0, 3), (0,), (0, 2, 2, 4)):
        with pytest.raises(ValueError, match="layers ascending from 0 to 4"):
            source.at(bounds)
    with pytest.raises(ValueError, match=r"bounds: expected some of \(0, 2, 4\)"):
        source.at((0, 2, 4)).at((0, 3, 4))
    with pytest.raises(ValueError, match="shape of backward_s"):
        LayerSums(SHAPES, OPTIONS, {**layers(4), "backward_s": np.zeros((3, 3, 2))})


def test_many_layers_are_sought_on_a_grid_and_then_finer():
    rng = np.random.default_rng(1)
    seconds = rng.integers(1, 9, size=(90, 1, 1)) / np.array([1, 2, 4])[:, None]
    source = LayerSums(SHAPES, ["all"], {"forward_s": seconds, "backward_s": 2 * seconds})
    options = {"num_microbatches": 16, "schedules": ["1f1b"]}
    coarse = partition_mesh(source.at((*range(0, 90, 8), 90)), 1, 4, **options)
    found = partition_mesh(source, 1, 4, max_cells=12, bound_every_cut=False, **options)
    bounded = partition_mesh(source, 1, 4, max_cells=12, **options)
    every = partition_mesh(source, 1, 4, **options)
    assert coarse.granularity == every.granularity == 1
    assert (found.granularity, bounded.granularity) == (8, 1)
    assert every.makespan_s <= bounded.makespan_s <= found.makespan_s <= coarse.makespan_s
    assert 0.99 * bounded.makespan_s <= bounded.bound_s <= every.makespan_s * (1 + 1e-12)
    assert every.bound_s <= every.makespan_s * (1 + 1e-12)
    assert found.makespan_s <= 1.02 * every.makespan_s
    assert near((0, 40, 90), range(91), 2, 12) == (0, 32, 34, 36, 38, 40, 42, 44, 46, 48, 90)
