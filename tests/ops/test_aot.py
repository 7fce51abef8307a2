import pytest

from tests.aot import check_report, compile_all
from tests.ops.aot_cases import CASES

PAIRS = [(case.name, target) for case in CASES for target in case.targets]


@pytest.mark.parametrize(("case", "target"), PAIRS)
def test_kernels_compile_without_spills(case: str, target: str) -> None:
    check_report(compile_all("tests.ops.aot_cases", target)[case])


def test_a_bad_choice_is_caught() -> None:
    report = compile_all("tests.ops.aot_bad_cases", "gfx942")["spills"]
    with pytest.raises(AssertionError, match="spills on gfx942 spills"):
        check_report(report)
