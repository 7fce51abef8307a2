"""The table of tiles and the rule for calls it does not list."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.attention import _tiles
from blocks.attention._tiles import Tiles, choose_tiles, fit, shared_estimate, shared_limit

OPERATIONS = ("prefill", "extend", "decode")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CACHES = (None, torch.float8_e4m3fn, torch.int8)
OTHER_CHIPS = ("sm_75", "sm_86", "sm_89", "sm_100", "sm_120", "gfx90a", "gfx950")


@given(
    st.sampled_from(OPERATIONS),
    st.sampled_from(_tiles.CHIPS + OTHER_CHIPS),
    st.sampled_from(DTYPES),
    st.integers(1, 256),
    st.sampled_from([1, 2, 3, 4, 7, 8, 16, 24, 64]),
    st.sampled_from([None, 1, 16, 128]),
    st.sampled_from(CACHES),
)
def test_every_call_gets_tiles_that_fit(operation, chip, dtype, head_dim, group, size, cache):
    tiles = choose_tiles(operation, chip, dtype, head_dim, group, size, cache)
    assert shared_estimate(tiles, chip, head_dim, dtype.itemsize) <= shared_limit(chip)
    assert tiles.form == "tma_ws" or tiles.q >= group
    assert all(n & (n - 1) == 0 and n >= 16 for n in (tiles.q, tiles.kv))
    assert tiles.warps in (1, 2, 4, 8)
    assert 1 <= tiles.stages <= 4


@pytest.mark.parametrize("chip", _tiles.CHIPS)
def test_a_listed_call_gets_its_row(chip):
    for row in _tiles.table(chip):
        for dtype in (t for t in DTYPES if _tiles.NAMES[t] in row.dtype):
            for cache in (t for t in CACHES if t is None or _tiles.NAMES[t] in row.kv_dtype):
                if cache is None and row.kv_dtype != ("same",):
                    continue
                for group in row.group:
                    how = (row.operation, chip, dtype, row.head_dim, group, row.block_size, cache)
                    found = choose_tiles(*how, form=row.tiles.form)
                    assert found == row.tiles


@pytest.mark.parametrize("chip", _tiles.CHIPS)
def test_the_table_lists_the_head_dimensions_of_models(chip):
    listed = {(row.operation, row.head_dim, d) for row in _tiles.table(chip) for d in row.dtype}
    for operation in OPERATIONS:
        for dtype in ("bf16", "fp16"):
            assert {(operation, d, dtype) for d in (64, 80, 96, 128, 192, 256)} <= listed
        assert {(operation, d, "fp32") for d in (64, 128, 256)} <= listed


@pytest.mark.parametrize("chip", _tiles.CHIPS)
def test_a_row_says_where_it_comes_from_and_survives_writing(chip):
    lines = (_tiles.TABLES / f"{chip}.json").read_text().splitlines()[1:-1]
    rows = _tiles.table(chip)
    assert [line.rstrip(",") for line in lines] == [_tiles.write_row(row) for row in rows]
    assert all(row.source.startswith(("compile report, triton ", "timed on ")) for row in rows)


def test_hopper_prefers_specialised_warps_for_prefill_in_16_bits():
    how = ("prefill", "sm_90", torch.bfloat16, 128, 4)
    assert choose_tiles(*how).form == "tma_ws"
    assert choose_tiles(*how, form="pointer").form == "pointer"
    assert choose_tiles("prefill", "sm_90", torch.float32, 128, 4).form == "pointer"
    assert choose_tiles("prefill", "sm_100", torch.bfloat16, 128, 4).form == "pointer"
    assert choose_tiles("extend", "sm_90", torch.bfloat16, 128, 4).form == "pointer"


def test_rows_that_do_not_fit_shrink_and_small_groups_do_not_grow_them():
    big = Tiles(128, 128, 8, 3)
    assert shared_estimate(big, "sm_86", 128, 2) > shared_limit("sm_86")
    small = fit(big, "sm_86", 128, 4, 2)
    assert shared_estimate(small, "sm_86", 128, 2) <= shared_limit("sm_86")
    assert small.stages < 3
    assert fit(Tiles(64, 32, 4, 2), "sm_90", 128, 4, 2) == Tiles(64, 32, 4, 2)
    assert fit(Tiles(16, 32, 4, 2), "sm_90", 128, 40, 2).q == 64


def test_a_lookup_costs_less_than_a_microsecond():
    def look() -> Tiles:
        return choose_tiles("decode", "sm_90", torch.bfloat16, 128, 4, 16, torch.bfloat16)

    look()
    best = min(_seconds(look) for _ in range(200))
    assert best < 1e-6 * 20, f"{best * 1e6:.2f} us for 20 lookups' budget"


def _seconds(call) -> float:
    start = time.perf_counter()
    for _ in range(20):
        call()
    return time.perf_counter() - start
