"""``Configuration``: how one model is spread over the devices of a group."""

import re
from typing import NamedTuple

from blocks._checks import check_count, fail


class Configuration(NamedTuple):
    """``op`` devices share every operator of a stage; ``pp`` stages follow one another.

    >>> str(Configuration(op=2, pp=4)), Configuration(op=2, pp=4).num_devices
    ('2 x 4', 8)
    """

    op: int
    pp: int

    @property
    def num_devices(self) -> int:
        """Devices of a group in this configuration."""
        return self.op * self.pp

    def __str__(self) -> str:
        return f"{self.op} x {self.pp}"

    @classmethod
    def parse(cls, text: str) -> "Configuration":
        """Read ``"2 x 4"`` (operators over two devices, four stages).

        >>> Configuration.parse("2x4")
        Configuration(op=2, pp=4)
        """
        found = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", text)
        if found is None:
            raise fail("configuration", "op x pp, as in '2 x 4'", repr(text))
        return cls(int(found[1]), int(found[2])).checked()

    def checked(self) -> "Configuration":
        """Itself.

        Raises:
            ValueError: degrees that are no positive whole numbers.
        """
        check_count("op", self.op)
        check_count("pp", self.pp)
        return self
