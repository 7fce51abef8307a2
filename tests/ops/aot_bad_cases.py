"""A choice that cannot work, to see that the check of the others can fail."""

import dataclasses

from tests.ops.aot_cases import norm

CASES = [
    dataclasses.replace(norm("spills", 16384, residual=True), num_warps=1),
]
