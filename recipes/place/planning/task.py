"""``PlaceTask``: models, traffic and devices, ready to be placed and simulated. Needs no torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from blocks._checks import check, fail
from blocks.sched.cluster_sim import ClusterSim, Event, Outcome, Overheads, simulate
from blocks.sched.cluster_sim.generation import (
    Admission,
    EngineSettings,
    GenerationOutcome,
    simulate_generation,
)
from blocks.sched.place_search import GenerationSimulator, Simulator
from blocks.sched.placement import Placement
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload
from recipes.place.config import PlaceConfig, PlacedModel
from recipes.place.engine_settings import engine_settings
from recipes.place.planning.change import Change, workload_at
from recipes.place.planning.rooms import capped, taken, taken_by, whole_blocks

NO_OVERHEADS = Overheads()
AnyOutcome = Outcome | GenerationOutcome


@dataclasses.dataclass(frozen=True, eq=False)
class PlaceTask:
    """What a placement is wanted for.

    config: as the user wrote it. profiles: of its models, by name.
    workload: the traffic that placements are tried on.
    num_devices, memory_bytes: of the cluster, a device.
    generates: whether the models give text token by token; else a request is one pass.
    overheads: on top of the profiles' times.
    """

    config: PlaceConfig
    profiles: Mapping[str, Profile]
    workload: Workload
    num_devices: int
    memory_bytes: int
    generates: bool
    overheads: Overheads = NO_OVERHEADS

    @classmethod
    def of(
        cls, config: PlaceConfig, profiles: Mapping[str, Profile], workload: Workload | None = None
    ) -> "PlaceTask":
        """The task that a config states.

        Args:
            workload: traffic instead of the config's; may be empty where nothing is searched for.

        Raises:
            ValueError: models that generate beside others, or no requests at all.
        """
        kinds = {model.name: generates(model, profiles[model.name]) for model in config.models}
        mixed = len(set(kinds.values())) > 1
        told = {kind: [name for name in kinds if kinds[name] is kind] for kind in (True, False)}
        hint = (
            f"{told[True][:3]} generate, {told[False][:3]} answer in one pass: engines that step "
            "and single passes do not share a group; give each kind a file and devices of its own"
        )
        check(not mixed, "models", "all of one kind", "both kinds", hint)
        if workload is None:
            workload = workload_at(config, Change())
            some = workload.num_requests > 0
            check(some, "traffic", "at least one request", "none", "see [traffic]")
        cluster = config.cluster
        return cls(
            config,
            profiles,
            workload,
            cluster.num_devices,
            cluster.memory_bytes,
            next(iter(kinds.values())),
        )

    def at(self, change: Change) -> "PlaceTask":
        """The same with other traffic."""
        return dataclasses.replace(self, workload=workload_at(self.config, change))

    @property
    def kv_tokens(self) -> dict[str, int] | None:
        """Least memory of each model's key-value cache in tokens: whole blocks, and the one that
        holds none. None where no model generates."""
        if not self.generates:
            return None
        size = self.config.engine.block_size
        return {
            model.name: taken_by(whole_blocks(model.kv_tokens, size), size)
            for model in self.config.models
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the simulation."""
        if not self.generates:
            return {"overheads": self.overheads}
        admission = Admission(slack=self.config.serving.slack)
        return {"settings": self.engine, "admission": admission, "overheads": self.overheads}

    @property
    def engine(self) -> EngineSettings:
        """Of every engine, where models generate."""
        return engine_settings(self.config.engine)

    def roomed(self, placement: Placement) -> Placement:
        """A placement whose rooms take all memory that is left, with rooms as engines have them."""
        return capped(placement, self.engine) if self.generates else placement

    def simulator(self) -> Simulator:
        """For searches: it remembers what it has simulated."""
        kind = GenerationSimulator if self.generates else ClusterSim
        return kind(self.profiles, self.workload, **self.settings)

    def outcome(self, placement: Placement, events: Sequence[Event] = ()) -> AnyOutcome:
        """What becomes of every request under a placement.

        Raises:
            ValueError: a placement that does not fit; see ``checked``.
        """
        self.checked(placement)
        run = simulate_generation if self.generates else simulate
        return run(placement, self.profiles, self.workload, events=events, **self.settings)

    def checked(self, placement: Placement) -> Placement:
        """The placement, where it can be carried out.

        Raises:
            ValueError: one that cannot, with everything that is wrong.
        """
        unknown = sorted(set(placement.models) - set(self.profiles))
        check(not unknown, "placement", f"models of {sorted(self.profiles)}", unknown)
        whole = taken(placement, self.engine) if self.generates else placement
        problems = whole.problems(self.profiles, self.memory_bytes, self.num_devices)
        if problems:
            raise fail("placement", "one that fits", "; ".join(map(str, problems)))
        roomless = [
            f"{model} on group {at}"
            for at, group in enumerate(placement.groups)
            for model in group.models
            if self.generates and group.kv_tokens_of(model) < self.config.engine.block_size
        ]
        check(not roomless, "kv_tokens", "room for tokens of every replica", f"none: {roomless}")
        return placement


def generates(model: PlacedModel, profile: Profile) -> bool:
    """Whether requests are for text: the profile times tokens, and no ``slo_s`` asks for passes."""
    return model.slo_s is None and any(timing.decode for timing in profile.timings)
