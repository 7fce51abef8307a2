"""Tiles that cannot work, to see that the check of the others can fail."""

import dataclasses

from blocks.attention._tiles import Tiles
from tests.attention.aot_cases import attend_case

CASES = [
    dataclasses.replace(attend_case("sm_80", 128, 4, tiles=Tiles(128, 64, 2, 1)), name="spills"),
    dataclasses.replace(attend_case("sm_80", 128, 4, tiles=Tiles(64, 128, 8, 8)), name="shared"),
]
