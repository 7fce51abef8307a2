"""``Contention``: how much of the machine others took while something was measured."""

import os
import time
from pathlib import Path
from typing import NamedTuple

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Contention(NamedTuple):
    """Processor time of a stretch of wall time.

    wall_s: how long it was. cores: of the machine.
    own_s: processor time of this process and those below it.
    busy_s: processor time of everybody, and what the host took away from the machine.
    """

    wall_s: float
    cores: int
    own_s: float
    busy_s: float

    @property
    def others(self) -> float:
        """Share of the cores that others had; what was measured holds as far as this is small."""
        return max(0.0, self.busy_s - self.own_s) / (self.cores * self.wall_s)

    def __str__(self) -> str:
        own = self.own_s / (self.cores * self.wall_s)
        return f"{self.cores} cores, {own:.0%} of them ours, {self.others:.1%} of others"


class ContentionMeter:
    """Reads the machine's counters when it is made, and at ``read``."""

    def __init__(self) -> None:
        self._wall_s, self._own_s, self._busy_s = time.monotonic(), _family_s(), _busy_s()

    def read(self) -> Contention:
        """Since the meter was made. Processes of ours that ended meanwhile count by their parents
        having waited for them."""
        wall_s = max(time.monotonic() - self._wall_s, 1e-9)
        own_s, busy_s = _family_s() - self._own_s, _busy_s() - self._busy_s
        return Contention(wall_s, os.cpu_count() or 1, own_s, busy_s)


def _busy_s() -> float:
    """Processor time of everybody since the machine started, what the host took included."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) * TICK_S


def _family_s() -> float:
    """Processor time of this process, its descendants and those of them it has waited for."""
    parents, times = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:  # it ended meanwhile
            continue
        fields = text[text.rindex(")") + 2 :].split()
        parents[int(entry.name)] = int(fields[1])
        times[int(entry.name)] = sum(map(int, fields[11:15])) * TICK_S
    family, grown = {os.getpid()}, 0
    while len(family) > grown:
        grown = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    return sum(times[pid] for pid in family if pid in times)
