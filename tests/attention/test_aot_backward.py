"""The kernels of the backward fit every chip, and use its matrix instructions."""

import pytest

from tests.aot import TARGETS, check_report, compile_all
from tests.attention.aot_backward import CASES


@pytest.mark.parametrize("target", TARGETS)
def test_every_case_fits_its_chip(target):
    reports = compile_all("tests.attention.aot_backward", target)
    assert sorted(reports) == sorted({case.name for case in CASES})
    for report in reports.values():
        check_report(report)
