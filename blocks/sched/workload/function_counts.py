"""Counts of invocations by function and minute, and the requests they stand for."""

import collections
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from blocks._checks import check, check_count, fail, is_number
from blocks.sched.workload.csv_file import open_csv
from blocks.sched.workload.workload import Number, Workload


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionCounts:
    """How often each function was invoked in each interval.

    names: of the functions.
    counts: invocations by function and interval.
    interval_s: seconds of an interval.
    """

    names: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    interval_s: Number = 60.0

    def __post_init__(self) -> None:
        ok = self.counts.ndim == 2 and len(self.counts) == len(self.names)
        check(ok, "counts", f"a row for each of {len(self.names)} functions", self.counts.shape)
        least = self.counts.min() if self.counts.size else 0
        check(bool(least >= 0), "counts", "0 or more", least)
        known = is_number(self.interval_s) and 0 < self.interval_s < float("inf")
        check(known, "interval_s", "seconds above 0", repr(self.interval_s))

    def striped(self, models: Sequence[str]) -> "FunctionCounts":
        """Functions dealt out to models in turn, as cards: function i to model i modulo their
        number."""
        check_count("number of models", len(models))
        sums = np.zeros((len(models), self.counts.shape[1]), np.int64)
        np.add.at(sums, np.arange(len(self.names)) % len(models), self.counts)
        return FunctionCounts(tuple(models), sums, self.interval_s)

    def between(self, start: int, stop: int) -> "FunctionCounts":
        """The intervals ``[start, stop)``."""
        return dataclasses.replace(self, counts=self.counts[:, start:stop])

    def replay(self, rng: np.random.Generator) -> Workload:
        """One request for every invocation, at a moment of its interval drawn at random.

        Functions are the models; counts are kept exactly.
        """
        rows, columns = np.nonzero(self.counts)
        times = self.counts[rows, columns]
        interval = np.repeat(columns, times)
        moments = (interval + rng.random(len(interval))) * self.interval_s
        ends = (interval + 1) * self.interval_s
        moments = np.where(moments < ends, moments, np.nextafter(ends, 0))
        duration_s = self.counts.shape[1] * self.interval_s
        return Workload.of(self.names, moments, np.repeat(rows, times), duration_s=duration_s)


def read_function_counts(path: Path) -> FunctionCounts:
    """Read a CSV of the Azure Functions 2019 format: a row a function, a column a minute.

    Columns whose heading is a number, or ``minute_`` and a number, are counts, in that order. The
    column ``HashFunction`` names the function, or the first where there is none; of rows of one
    name, later ones get a number.

    Raises:
        ValueError: no such columns, or a row that has no count where one belongs.

    Reference: Shahrad et al., Serverless in the Wild, 2020 (the data set).
    """
    with open_csv(path) as file:
        rows = csv.reader(file)
        header = next(rows, [])
        found = [(_minute(heading), at) for at, heading in enumerate(header)]
        minutes = sorted((minute, at) for minute, at in found if minute is not None)
        check(bool(minutes), f"{path.name} line 1", "columns minute_1, minute_2, ...", header[:4])
        columns = [at for _, at in minutes]
        named = header.index("HashFunction") if "HashFunction" in header else 0
        seen: collections.Counter[str] = collections.Counter()
        names, counts = [], []
        for row in filter(None, rows):
            try:
                counts.append([_count(row[at]) for at in columns])
                name = row[named]
            except (ValueError, IndexError) as error:
                where = f"{path.name} line {rows.line_num}"
                raise fail(where, "a name and counts of invocations", error) from error
            seen[name] += 1
            names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    table = np.array(counts, np.int64).reshape(len(names), len(columns))
    return FunctionCounts(tuple(names), table)


def _count(text: str) -> int:
    number = float(text or 0)
    check(0 <= number < 1 << 31, "count", "0 or more, less than 2**31", text[:40])
    return int(number)


def _minute(heading: str) -> int | None:
    digits = heading.strip().lower().removeprefix("minute_")
    return int(digits) if digits.isdecimal() else None
