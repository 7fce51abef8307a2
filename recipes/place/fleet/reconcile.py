"""The whole way from what is there to what is wanted, as data."""

import collections
from collections.abc import Callable, Iterator

from blocks.sched.placement import Group, Placement
from recipes.place.fleet.action import Action, Devices, Load, Replace, Start, Stop, Unload
from recipes.place.fleet.observed import Observed

Fits = Callable[[Group], bool]
"""Whether the devices of a group have memory for it."""


def reconcile(desired: Placement, observed: Observed, fits: Fits) -> tuple[Action, ...]:
    """Actions that lead from ``observed`` to ``desired``, in an order in which each can be done
    once those before it are: no device is ever in two groups, and memory never overcommitted.

    New replicas come before old ones go. A wanted model loses its last replica only where nothing
    else makes room, or where ``desired`` does not have it. A replica with another room than desired
    stays as it is, unless a smaller one must make room. Nothing is done to busy groups, and nothing
    that waits after a failure; once it does so no longer, another call gives the rest.

    Args:
        desired: groups of lost devices are left out of it; ``Replace`` comes first then.
        fits: is asked about every group that a load would lead to.
    """
    return tuple(_Way(desired, observed, fits).steps())


class _Way:
    """The cluster as it will be after the steps so far."""

    def __init__(self, desired: Placement, observed: Observed, fits: Fits) -> None:
        self.observed, self.fits = observed, fits
        broken = [g for g in desired.groups if observed.lost.intersection(g.devices)]
        self.lost = sorted({d for g in broken for d in g.devices if d in observed.lost})
        self.wanted_groups = {g.devices: g for g in desired.groups if g not in broken}
        self.groups = {g.devices: g.as_group() for g in observed.groups}
        self.ready = collections.Counter(
            r.model for g in observed.groups for r in g.replicas if r.ready
        )
        self.unready = {(g.devices, r.model) for g in observed.groups for r in g.replicas
                        if not r.ready}  # fmt: skip

    def steps(self) -> Iterator[Action]:
        if self.lost:
            yield Replace(tuple(self.lost))
        while True:
            step = self._start() or self._load() or self._spare() or self._sacrifice()
            if step is None:
                return
            self._take(step)
            yield step

    def _take(self, step: Action) -> None:
        """The step is done."""
        if isinstance(step, Start):
            self.groups[step.devices] = Group(step.devices, step.configuration)
        elif isinstance(step, Load):
            self.groups[step.devices] = self.groups[step.devices].hosting(
                step.model, step.kv_tokens
            )
            self.ready[step.model] += 1
        elif isinstance(step, Unload):
            self.ready[step.model] -= (step.devices, step.model) not in self.unready
            self.groups[step.devices] = self.groups[step.devices].without(step.model)
        elif isinstance(step, Stop):
            for model in self.groups.pop(step.devices).models:
                self.ready[model] -= (step.devices, model) not in self.unready

    # --- what brings the wanted about -----------------------------------------------------------

    def _start(self) -> Start | None:
        for group in self._missing_groups():
            if not self._in_the_way(group.devices):
                return Start(group.devices, group.configuration)
        return None

    def _load(self) -> Load | None:
        for load in self._missing_replicas():
            if self.fits(self.groups[load.devices].hosting(load.model, load.kv_tokens)):
                return load
        return None

    def _missing_groups(self) -> Iterator[Group]:
        """That may be started as soon as their devices are free."""
        for devices, group in self.wanted_groups.items():
            here = self.groups.get(devices)
            same = here is not None and here.configuration == group.configuration
            if not same and self._may_touch(devices, ""):
                yield group

    def _missing_replicas(self) -> Iterator[Load]:
        """That may be loaded as soon as there is memory; models without a replica come first."""
        found = []
        for devices, group in self.wanted_groups.items():
            here = self.groups.get(devices)
            if here is None or here.configuration != group.configuration:
                continue
            for model in group.models:
                if model not in here.models and self._may_touch(devices, model):
                    found.append(Load(devices, model, group.kv_tokens_of(model)))
        yield from sorted(found, key=lambda load: self.ready[load.model] > 0)

    def _may_touch(self, devices: Devices, model: str) -> bool:
        observed = self.observed
        if observed.busy.intersection(devices) or observed.lost.intersection(devices):
            return False
        return (devices, model) not in observed.waiting

    def _in_the_way(self, devices: Devices) -> list[Devices]:
        """Groups on some of the devices."""
        return [other for other in self.groups if set(other) & set(devices)]

    # --- what makes room for it -----------------------------------------------------------------

    def _spare(self) -> Stop | Unload | None:
        """Something nobody wants there, which no wanted model needs."""
        return next((step for step in self._surplus() if not self._harm(step)), None)

    def _sacrifice(self) -> Stop | Unload | None:
        """Of what stands in the way of something that could be done now, the least harm."""
        blocked = [step for group in self._missing_groups() for step in self._blocking(group)]
        for load in self._missing_replicas():
            blocked += [s for s in self._surplus() if s.devices == load.devices] or [
                *self._too_roomy(load.devices)
            ]
        return min(blocked, key=self._harm, default=None)

    def _blocking(self, group: Group) -> Iterator[Stop]:
        others = self._in_the_way(group.devices)
        if not any(self.observed.busy.intersection(other) for other in others):
            yield from map(Stop, others)

    def _surplus(self) -> Iterator[Stop | Unload]:
        for devices, here in self.groups.items():
            if self.observed.busy.intersection(devices):
                continue
            wanted = self.wanted_groups.get(devices)
            if wanted is None or wanted.configuration != here.configuration:
                yield Stop(devices)
                continue
            for model in here.models:
                if model not in wanted.models:
                    yield Unload(devices, model)

    def _too_roomy(self, devices: Devices) -> Iterator[Unload]:
        here, wanted = self.groups[devices], self.wanted_groups[devices]
        for model in here.models:
            waits = (devices, model) in self.observed.waiting
            if here.kv_tokens_of(model) > wanted.kv_tokens_of(model) and not waits:
                yield Unload(devices, model)

    def _harm(self, step: Stop | Unload) -> int:
        """Wanted models whose last replica would go, though ``desired`` has them."""
        models = self.groups[step.devices].models if isinstance(step, Stop) else (step.model,)
        return sum(self._is_last(step.devices, model) for model in models)

    def _is_last(self, devices: Devices, model: str) -> bool:
        if model not in self.observed.wanted or (devices, model) in self.unready:
            return False
        planned = any(model in group.models for group in self.wanted_groups.values())
        return planned and self.ready[model] <= 1
