"""``profiles_here``: the profiles that a config names, some of them timed on this machine."""

from collections.abc import Callable

from blocks.sched.profile import Profile
from recipes.place.config import PlaceConfig, PlacedModel
from recipes.place.planning.timed import timed
from recipes.place.profiles import profiles_of


def profiles_here(config: PlaceConfig, say: Callable[[str], None]) -> dict[str, Profile]:
    """Read what is named; time models whose profile is ``measure``, each folder once.

    Raises:
        ValueError: as ``profiles_of``, or a folder that is no model.
    """
    known: dict[str, Profile] = {}

    def measure(config: PlaceConfig, model: PlacedModel) -> Profile:
        assert model.folder is not None  # the config asks for one to measure
        if model.folder not in known:
            known[model.folder] = timed(config, model, say)
        return known[model.folder]

    return profiles_of(config, measure)
