"""Every kernel compiles for the chips we name, without spills and within shared memory."""

import pytest

from tests.aot import TARGETS, check_report, compile_all
from tests.kv.aot_cases import CASES


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compiles(case, target):
    report = compile_all("tests.kv.aot_cases", target)[case.name]
    check_report(report)
    assert report.shared_bytes == 0, "a plain copy needs no shared memory"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_elements_move_in_wide_accesses(case):
    """Opcodes carry their width on this chip; losing alignment shows as 2-byte accesses."""
    report = compile_all("tests.kv.aot_cases", "gfx942")[case.name]
    moves = {op for op in report.opcodes if op.startswith(("global_load", "global_store"))}
    assert moves <= {f"global_{op}_dwordx{n}" for op in ("load", "store") for n in (2, 4)}, moves
    assert len(moves) >= 2


def test_a_bad_choice_is_caught() -> None:
    report = compile_all("tests.kv.aot_bad_cases", "gfx942")["spills"]
    with pytest.raises(AssertionError, match="spills on gfx942 spills"):
        check_report(report)
