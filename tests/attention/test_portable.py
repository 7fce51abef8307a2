"""The loops taken on processors without AVX-512, built and run here."""

import subprocess
import sys

from blocks.attention._cpu import SOURCE

CHECK = """
import pathlib, sys, torch
from blocks import _native
from blocks.attention import _cpu, paged_extend, reference, tree_decode

# a sixth of the compiler's time; what is computed is the same
_native.FLAGS = tuple("-O1" if flag == "-O3" else flag for flag in _native.FLAGS)
_cpu.SOURCE = pathlib.Path(sys.argv[1])
_cpu.QUANTISED_SOURCE = _cpu.SOURCE.with_name("quantised.cpp")
from tests.attention.paged_case import paged_case
from tests.attention.quantised_case import KINDS, STORED, quantised_case
from tests.numerics import assert_close

options = dict(window=65, softcap=4.0, sinks=torch.zeros(4), return_lse=True)


def check(paged, meant, **scales):
    expected = reference.paged_extend(*meant, **options)
    actual = paged_extend(*paged, **options, **scales, impl="native")
    assert_close(actual.output, expected.output)
    assert_close(actual.lse, expected.lse)


for dtype in (torch.float32, torch.bfloat16, torch.float16):
    shape = dict(head_dim=40, dtype=dtype)
    case = paged_case([3, 1, 40], [3, 600, 70], **shape)
    check(case.paged, [t.float() if t.is_floating_point() else t for t in case.paged])
    for stored in STORED:
        for k_kind, v_kind in zip(KINDS, reversed(KINDS)):
            how = stored, k_kind, v_kind
            case, scales, meant = quantised_case([3, 40], [600, 70], *how, **shape)
            check(case.paged, meant.paged, **scales)
case = paged_case([4], [70])
mask = torch.tensor([1, 3, 5, 11])
expected = reference.tree_decode(*case.paged, mask, window=40)
assert_close(tree_decode(*case.paged, mask, window=40, impl="native"), expected)
"""


def test_the_portable_source_agrees(tmp_path):
    for file in SOURCE.parent.iterdir():
        switch = "#define BLOCKS_PORTABLE 1\n" if file.suffix == ".cpp" else ""
        (tmp_path / file.name).write_text(switch + file.read_text())
    command = [sys.executable, "-c", CHECK, str(tmp_path / SOURCE.name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
