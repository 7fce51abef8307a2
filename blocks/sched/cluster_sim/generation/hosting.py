"""``Hosting``: which models the groups of a placement host, and the engines that serve them."""

from collections.abc import Callable, Mapping, Sequence

from blocks._checks import check
from blocks.sched.cluster_sim.generation.engine import Engine
from blocks.sched.cluster_sim.generation.group_run import GroupRun
from blocks.sched.cluster_sim.generation.settings import AllocatorFactory, EngineSettings
from blocks.sched.cluster_sim.generation.step_time import StepTime
from blocks.sched.cluster_sim.settings import Event, Overheads
from blocks.sched.placement.placement import Placement
from blocks.sched.profile.profile import Profile


class Hosting:
    """Makes the groups of a placement as they begin, and their engines whenever they start.

    Models that nobody asks for have neither number nor engine.

    hosts: for each model, by its number, the groups that host it.

    Args:
        models: those that requests are for, in the order of their numbers.
        clock: that the schedulers see.
    """

    def __init__(
        self,
        placement: Placement,
        profiles: Mapping[str, Profile],
        models: Sequence[str],
        settings: EngineSettings,
        overheads: Overheads,
        make_allocator: AllocatorFactory,
        clock: Callable[[], float],
    ) -> None:
        self._placement, self._settings, self._overheads = placement, settings, overheads
        self._make_allocator, self._clock = make_allocator, clock
        self._number = {model: number for number, model in enumerate(models)}
        self._step_times = self._times(profiles)
        self.hosts: list[list[int]] = [[] for _ in models]
        for at, group in enumerate(placement.groups):
            for model in group.models:
                if model in self._number:
                    self.hosts[self._number[model]].append(at)

    def _times(self, profiles: Mapping[str, Profile]) -> dict[tuple[int, int], StepTime]:
        found: dict[tuple[int, int], StepTime] = {}
        for at, group in enumerate(self._placement.groups):
            scale = 1.0 + self._overheads.per_stage * group.configuration.pp
            for model in group.models:
                if model not in self._number:
                    continue
                timing = profiles[model].timing(group.configuration)
                what = f"profile of {model} in {group.configuration}"
                check(bool(timing.decode), what, "prefill and decode times", "none")
                rooms = group.kv_tokens_of(model)
                check(rooms > 0, f"kv_tokens of {model} in group {at}", "room for tokens", rooms)
                found[at, self._number[model]] = StepTime(timing, scale)
        return found

    def groups(self, events: Sequence[Event]) -> list[GroupRun]:
        """All groups before the first event: those whose first is ``up`` are down, models whose
        first is ``load`` not there."""
        found = []
        events = sorted(events, key=lambda event: event.at_s)
        for at, group in enumerate(self._placement.groups):
            own = [event for event in events if event.group in (-1, at)]
            switches = [event.kind for event in own if event.kind in ("up", "down")]
            num_stages, up = group.configuration.pp, switches[:1] != ["up"]
            made = GroupRun(num_stages, self._overheads.gap_of(num_stages), up, self._settings)
            for model in group.models:
                loads = [e.kind for e in own if e.model in ("", model) and "load" in e.kind]
                if model in self._number and loads[:1] != ["load"]:
                    made.loaded.add(self._number[model])
            made.engines = self.engines(at)
            found.append(made)
        return found

    def engines(self, at: int) -> list[Engine]:
        """New engines for the models of a group, with nothing in them."""
        group, engines = self._placement.groups[at], []
        for model in group.models:
            if model not in self._number:
                continue
            kv_tokens = group.kv_tokens_of(model)
            num_blocks = kv_tokens // self._settings.block_size
            check(num_blocks > 0, f"kv_tokens of {model}", "at least a block", kv_tokens)
            number = self._number[model]
            step_time = self._step_times[at, number]
            engines.append(
                Engine(
                    number,
                    step_time,
                    self._settings,
                    num_blocks,
                    self._make_allocator,
                    self._clock,
                )
            )
        return engines

    def named(self, at: int, model: str) -> list[int]:
        """Numbers of a group's models of that name; of all of them where it is empty."""
        models = self._placement.groups[at].models
        names = [model] if model else models
        return [self._number[name] for name in names if name in self._number and name in models]
