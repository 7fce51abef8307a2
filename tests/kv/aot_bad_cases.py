"""A choice that cannot work, to see that the check of the others can fail."""

import dataclasses

from tests.kv.aot_cases import copy_case

COPY = copy_case("spills", "fp32")
CASES = [
    dataclasses.replace(COPY, constexprs={"TILE": 65536}, num_warps=1),
]
