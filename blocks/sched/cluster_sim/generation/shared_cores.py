"""``SharedCores``: devices that are not alone on what they run on."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from blocks._checks import check
from blocks.sched.placement.group import Group
from blocks.sched.placement.placement import Placement


class SharedCores(NamedTuple):
    """Processor cores that serve as devices, several to a core.

    Steps that are on one core at a time get an equal share of it each, as processes do that an
    operating system gives turns; a step of several cores is as slow as its slowest.

    core_of: for each device of the cluster the number of its core.
    speed: how fast a core goes while 1, 2, ... cores are at work, against one alone: they share
        memory, and maybe more. The last number holds for more cores. A profile's times hold for
        cores of one group at work and no others.

    >>> two = SharedCores((0, 1, 0, 1), speed=(1.0, 0.9))
    >>> two.rates([(0,), (2,), (1,)])
    [0.45, 0.45, 0.9]
    """

    core_of: tuple[int, ...]
    speed: tuple[float, ...] = (1.0,)

    def speed_of(self, num_cores: int) -> float:
        """How fast a core goes while so many are at work."""
        return self.speed[min(num_cores, len(self.speed)) - 1]

    def rates(self, devices: Sequence[Sequence[int]]) -> list[float]:
        """How fast steps go that are on these devices all at a time, against each alone."""
        cores = [[self.core_of[device] for device in step] for step in devices]
        count: dict[int, int] = {}
        for core in (core for step in cores for core in step):
            count[core] = count.get(core, 0) + 1
        speed = self.speed_of(len(count))
        return [
            speed / self.speed_of(len(step)) / max(count[core] for core in step) for step in cores
        ]

    def checked(self, placement: Placement) -> "SharedCores":
        """Itself.

        Raises:
            ValueError: devices without a core, groups with a core twice, speeds that are none.
        """
        ok = bool(self.speed) and all(0 < speed < float("inf") for speed in self.speed)
        check(ok, "speed", "numbers above 0", self.speed)
        for group in placement.groups:
            known = all(0 <= device < len(self.core_of) for device in group.devices)
            check(known, "core_of", f"a core for each device of {group}", self.core_of)
            op, devices = group.configuration.op, group.devices
            for start in range(0, len(devices), op):
                stage = [self.core_of[device] for device in devices[start : start + op]]
                check(len(set(stage)) == op, f"cores of {group}", "one for each device", stage)
        return self


class StepsUnderWay:
    """Steps of groups on shared cores, and when each gets through its stage.

    A change of who is at work changes everybody's end: ``ends`` tells them anew.
    """

    def __init__(self, cores: SharedCores, placement: Placement) -> None:
        self.cores = cores
        self._stages = [
            [g.devices[start : start + g.configuration.op] for start in _starts(g)]
            for g in placement.groups
        ]
        self._left: dict[int, list[float]] = {}
        self._rate: dict[int, float] = {}
        self._now_s = 0.0

    def begin(self, group: int, stage_s: Sequence[float], now_s: float) -> None:
        """A step of so many seconds begins; its group has no other under way."""
        assert group not in self._left, f"group {group} is at work"
        self._advance(now_s)
        self._left[group] = list(stage_s)
        self._share()

    def through(self, group: int, now_s: float) -> bool:
        """A step has come to the end of a stage: whether that was its last."""
        self._advance(now_s)
        self._left[group].pop(0)
        over = not self._left[group]
        if over:
            del self._left[group]
        self._share()
        return over

    def drop(self, group: int, now_s: float) -> None:
        """A group stops, whatever it was at."""
        self._advance(now_s)
        self._left.pop(group, None)
        self._share()

    def ends(self) -> Iterator[tuple[int, float]]:
        """Groups at work, and when they are through with their stage if nothing changes."""
        for group, left in self._left.items():
            yield group, self._now_s + left[0] / self._rate[group]

    def _advance(self, now_s: float) -> None:
        for group, left in self._left.items():
            left[0] = max(0.0, left[0] - (now_s - self._now_s) * self._rate[group])
        self._now_s = now_s

    def _share(self) -> None:
        groups = list(self._left)
        devices = [self._stages[group][-len(self._left[group])] for group in groups]
        self._rate = dict(zip(groups, self.cores.rates(devices), strict=True))


def _starts(group: Group) -> range:
    return range(0, len(group.devices), group.configuration.op)
