"""Every kernel compiles for the chips we name, without spills and within shared memory."""

import pytest

from tests.aot import check_report, compile_all
from tests.kv.aot_cases import CASES

WIDE = ("write-bf16", "write-bf16-wide", "write-fp32", "copy", "copy-scales")
COPIES = [case for case in CASES if case.name in WIDE]
PAIRS = [(case, target) for case in CASES for target in case.targets]


@pytest.mark.parametrize(("case", "target"), PAIRS, ids=lambda x: getattr(x, "name", x))
def test_compiles(case, target):
    report = compile_all("tests.kv.aot_cases", target)[case.name]
    check_report(report)
    if not case.name.startswith("rope") and "token" not in case.name:  # these reduce rows
        assert report.shared_bytes == 0, "a plain copy needs no shared memory"


@pytest.mark.parametrize("case", COPIES, ids=lambda case: case.name)
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
