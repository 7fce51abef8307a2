"""``Memory``: which models still fit on a group. Needs no torch."""

from collections.abc import Collection, Mapping

from blocks._checks import check_count
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration, Profile


class Memory:
    """Bytes of models on the devices of a group, looked up instead of summed up afresh.

    profiles: of every model, by name.
    memory_bytes: what one device may hold.
    kv_tokens: least room, in tokens, that a generating model must have beside its weights.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        memory_bytes: int,
        kv_tokens: Mapping[str, int] | None = None,
    ) -> None:
        check_count("memory_bytes", memory_bytes)
        self.profiles = profiles
        self.memory_bytes = memory_bytes
        self.kv_tokens = dict(kv_tokens or {})
        for model, room in self.kv_tokens.items():
            check_count(f"kv_tokens of {model}", room, least=0)
        self._known: dict[tuple[str, Configuration], tuple[int, int] | None] = {}

    def bytes_of(self, model: str, configuration: Configuration) -> tuple[int, int] | None:
        """Bytes that stay on the fullest device, and activations; None where it was not timed."""
        key = (model, configuration)
        if key not in self._known:
            timing = self.profiles[model].find(configuration)
            if timing is None:
                self._known[key] = None
            else:
                whole = timing.device_bytes(self.kv_tokens.get(model, 0))
                activations = timing.activation_bytes
                self._known[key] = (whole - activations, activations)
        return self._known[key]

    def group_bytes(self, configuration: Configuration, models: Collection[str]) -> float | int:
        """Bytes on the fullest device; infinite where a model was not timed so."""
        kept, most = 0, 0
        for model in models:
            found = self.bytes_of(model, configuration)
            if found is None:
                return float("inf")
            kept += found[0]
            most = max(most, found[1])
        return kept + most

    def holds(self, configuration: Configuration, models: Collection[str]) -> bool:
        """Whether a group can host these together."""
        return self.group_bytes(configuration, models) <= self.memory_bytes

    def fits(self, group: Group, model: str) -> bool:
        """Whether one more model may be hosted."""
        if model in group.models:
            return False
        return self.holds(group.configuration, (*group.models, model))

    def with_rooms(self, placement: Placement) -> Placement:
        """All that is left on each group given to the caches of its generating models, in equal
        parts of bytes. Groups without such models stay as they are."""
        return Placement(tuple(self._roomy(group) for group in placement.groups))

    def _roomy(self, group: Group) -> Group:
        timings = [self.profiles[model].timing(group.configuration) for model in group.models]
        per_token = [timing.kv_bytes_per_token for timing in timings]
        if not any(per_token):
            return group
        left = self.memory_bytes - self.group_bytes(group.configuration, group.models)
        share = max(0, int(left)) // sum(1 for size in per_token if size)
        rooms = tuple(
            self.kv_tokens.get(model, 0) + share // size if size else 0
            for model, size in zip(group.models, per_token, strict=True)
        )
        return group._replace(kv_tokens=rooms)
