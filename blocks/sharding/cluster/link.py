"""``Link``: what moving bytes between devices takes, as a line or as tables. Needs no torch."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from blocks._checks import check, check_count, check_positive, reading
from blocks.sharding.cluster.curve import Curve, Number
from blocks.sharding.cluster.sources import check_sources

Clock = Literal["elapsed", "cpu"]
"""Which seconds: those that pass, or those in which a processor core works for one rank."""

Moving = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]
"""What is measured on a link; ``send`` is one message from a rank to another."""


@dataclasses.dataclass(frozen=True)
class CollectiveTable:
    """Measured seconds of one collective among so many ranks.

    collective: see ``Moving``.
    num_ranks: of the group that was measured, alone on the link.
    clock: which seconds; of ``cpu`` those of one rank, the mean over ranks.
    curve: seconds over the bytes that a rank sends (``collective_bytes``).
    """

    collective: Moving
    num_ranks: int
    clock: Clock
    curve: Curve

    def __post_init__(self) -> None:
        known = get_args(Moving)
        check(self.collective in known, "collective", f"one of {known}", self.collective)
        check_count("num_ranks", self.num_ranks)
        check(self.clock in get_args(Clock), "clock", get_args(Clock), self.clock)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        names = ("collective", "num_ranks", "clock")
        return {name: getattr(self, name) for name in names} | {"curve": self.curve.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CollectiveTable":
        """
        Raises:
            ValueError: data that is no table.
        """
        with reading("collective table", data, cls):
            return cls(**{**data, "curve": Curve.from_json(data["curve"])})


@dataclasses.dataclass(frozen=True)
class Link:
    """How devices are joined: inside of a node, or nodes with one another.

    name: as its maker calls it.
    latency_s: of one hop.
    bytes_per_s: what one device sends over it while it receives as much.
    node_bytes_per_s: what all devices of a node send over it together; None where none is in the
        way of another.
    sources: for each of the numbers above where it comes from.
    tables: what was measured; they go before latency and bandwidth. One table each for a
        collective, a number of ranks and a clock.
    lanes: equal parts that a device's bandwidth is made of, where devices are wired with them one
        by one (``Node.lanes``).

    >>> link = Link("wire", 1e-6, 1e9, None, dict.fromkeys(NUMBERS, "assumption"))
    >>> link.seconds("all_gather", 10**6, 4)  # 2 hops and a millisecond
    0.001002
    """

    name: str
    latency_s: Number
    bytes_per_s: Number
    node_bytes_per_s: Number | None
    sources: Mapping[str, str] = dataclasses.field(hash=False)
    tables: tuple[CollectiveTable, ...] = ()
    lanes: int = 1

    def __post_init__(self) -> None:
        check(self.latency_s >= 0, f"latency_s of {self.name}", "0 or more", self.latency_s)
        check_positive(f"bytes_per_s of {self.name}", self.bytes_per_s)
        check_positive(f"node_bytes_per_s of {self.name}", self.node_bytes_per_s)
        check_count(f"lanes of {self.name}", self.lanes)
        check_sources(self.name, self.sources, NUMBERS)
        keys = [(table.collective, table.num_ranks, table.clock) for table in self.tables]
        check(len(set(keys)) == len(keys), f"tables of {self.name}", "each once", keys)

    def part(self, lanes: int) -> "Link":
        """As devices see it that are joined by so many of the lanes."""
        if lanes == self.lanes:
            return self
        rate = self.bytes_per_s * lanes / self.lanes
        return dataclasses.replace(self, bytes_per_s=rate, tables=(), lanes=lanes)

    def hops(self, collective: Moving, num_ranks: int) -> int:
        """Messages behind one another that a collective of few bytes takes."""
        if collective == "send":
            return 1
        rounds = math.ceil(math.log2(num_ranks)) if num_ranks > 1 else 0
        return 2 * rounds if collective == "all_reduce" else rounds

    def table(self, collective: Moving, num_ranks: int, clock: Clock) -> CollectiveTable | None:
        """The table of the nearest number of ranks that was measured, of two the larger one."""
        found = [t for t in self.tables if (t.collective, t.clock) == (collective, clock)]

        def distance(table: CollectiveTable) -> tuple[float, int]:
            return abs(math.log(table.num_ranks / num_ranks)), -table.num_ranks

        return min(found, key=distance, default=None)

    def seconds(self, collective: Moving, sent_bytes: Number, num_ranks: int) -> float:
        """Seconds that pass where every rank of one group sends so much, nothing else moving.

        Without a table: a hop's latency for each doubling of the ranks (recursive doubling and
        halving), and the bytes at the bandwidth of a device.

        Reference:
            Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
            MPICH", 2005, section 4.
        """
        if (table := self.table(collective, num_ranks, "elapsed")) is not None:
            return table.curve(sent_bytes)
        return self.latency_s * self.hops(collective, num_ranks) + sent_bytes / self.bytes_per_s

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tables = [table.to_json() for table in self.tables]
        return plain | {"sources": dict(self.sources), "tables": tables}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Link":
        """
        Raises:
            ValueError: data that is no link.
        """
        data = {"lanes": 1, **data}  # files from before there were such
        with reading("link", data, cls):
            tables = tuple(CollectiveTable.from_json(table) for table in data["tables"])
            return cls(**{**data, "tables": tables})


NUMBERS = ("latency_s", "bytes_per_s", "node_bytes_per_s")
