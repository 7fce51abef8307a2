"""``Capacity``: what fits on a group of devices."""

from collections.abc import Iterable, Mapping

from blocks.sched.placement import Group, group_bytes
from blocks.sched.profile import Configuration, Profile
from recipes.place.planning.rooms import taken_by, whole_blocks


class Capacity:
    """Looks a group up in the profiles of its models.

    profiles: of every model, by name.
    memory_bytes: what one device may hold.
    least: tokens that the cache of a model must have room for, wherever it is loaded; whole blocks.
    block_size: of the caches, each of which takes a block more than it has room for.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        memory_bytes: int,
        least: Mapping[str, int],
        block_size: int,
    ) -> None:
        self.profiles, self.memory_bytes, self.block_size = profiles, memory_bytes, block_size
        self.least = {model: whole_blocks(num, block_size) for model, num in least.items()}
        self._known: dict[Group, bool] = {}

    def fits(self, group: Group) -> bool:
        """Whether its devices can hold it; false where a model was not timed so."""
        key = group._replace(devices=())
        if key not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            rooms = tuple(taken_by(room, self.block_size) for room in key.kv_tokens)
            self._known[key] = self._timed(key) and (
                group_bytes(key._replace(kv_tokens=rooms), self.profiles) <= self.memory_bytes
            )
        return self._known[key]

    def _timed(self, group: Group) -> bool:
        profiles = [self.profiles.get(model) for model in group.models]
        return all(p is not None and p.find(group.configuration) is not None for p in profiles)

    def with_least(self, group: Group, model: str) -> Group | None:
        """The group with one more model, at its least room; None where it does not fit."""
        if model in group.models:
            return None
        more = group.hosting(model, self.least.get(model, 0))
        return more if self.fits(more) else None

    def shapes(self, models: Iterable[str], num_devices: int) -> list[Configuration]:
        """Configurations that one of the models was timed in, those of most devices first."""
        found = {
            shape
            for model in models
            for shape in self.profiles[model].configurations
            if shape.num_devices <= num_devices
        }
        return sorted(found, key=lambda shape: (-shape.num_devices, shape))
