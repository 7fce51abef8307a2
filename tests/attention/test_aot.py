"""Every tile choice compiles for its chip without spills and within its shared memory."""

import dataclasses

import pytest

from blocks.attention import _tiles
from tests.aot import TARGETS, check_report, compile_all
from tests.attention.aot_cases import CASES


@pytest.mark.parametrize("target", TARGETS)
def test_every_case_fits_its_chip(target):
    reports = compile_all("tests.attention.aot_cases", target)
    assert sorted(reports) == sorted(case.name for case in CASES if target in case.targets)
    for report in reports.values():
        check_report(report)


@pytest.mark.parametrize("name", ["extend-bf16-d128-g4-plain", "prefill-bf16-d128-g4-plain"])
def test_hopper_prefill_uses_its_wide_matrix_instruction_and_asynchronous_copies(name):
    opcodes = compile_all("tests.attention.aot_cases", "sm_90")[name].opcodes
    assert "HGMMA" in opcodes
    assert "LDGSTS" in opcodes


def test_decode_pipelines_its_loads_and_uses_matrix_instructions():
    opcodes = compile_all("tests.attention.aot_cases", "sm_80")["decode-bf16-d128-g4"].opcodes
    assert {"HMMA", "LDGSTS"} <= set(opcodes)


@pytest.mark.parametrize("name", ["spills", "shared"])
def test_a_bad_choice_of_tiles_is_caught(name):
    report = compile_all("tests.attention.aot_bad_cases", "sm_80")[name]
    others_fixed = {"spills": {"shared_bytes": 0}, "shared": {"spills": 0}}[name]
    with pytest.raises(AssertionError, match=name):
        check_report(dataclasses.replace(report, **others_fixed))


@pytest.mark.parametrize("chip", TARGETS)
def test_no_row_of_the_table_escapes(chip):
    """Each row's own tiles are among the cases of its chip."""
    cases = [case for case in CASES if chip in case.targets]
    for row in _tiles.table(chip):
        name = f"{row.operation}{'_tma' if row.tiles.form == 'tma_ws' else ''}"
        start, (q, kv, *launch, _) = f"{name}-{row.dtype[0]}-d{row.head_dim}-g4", row.tiles
        assert any(
            case.name.startswith(start)
            and (case.constexprs["TILE_Q"], case.constexprs["TILE_KV"]) == (q, kv)
            and [case.num_warps, case.num_stages] == launch
            for case in cases
        ), row
