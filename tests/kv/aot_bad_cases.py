"""A choice that cannot work, to see that the check of the others can fail."""

import dataclasses

from tests.kv.aot_cases import copy_case

CASES = [dataclasses.replace(copy_case("spills", "i32", tile=65536), num_warps=1)]
