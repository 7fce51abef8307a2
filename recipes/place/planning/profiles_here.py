"""``profiles_here``: the profiles that a config names."""

from collections.abc import Callable

from blocks._checks import fail
from blocks.sched.profile import Profile
from recipes.place.config import PlaceConfig, PlacedModel
from recipes.place.profiles import profiles_of


def profiles_here(config: PlaceConfig, say: Callable[[str], None]) -> dict[str, Profile]:
    """
    Raises:
        ValueError: as ``profiles_of``.
    """

    def measure(config: PlaceConfig, model: PlacedModel) -> Profile:
        raise fail(f"{model.name}.profile", "a profile file or a bundled name", "measure")

    return profiles_of(config, measure)
