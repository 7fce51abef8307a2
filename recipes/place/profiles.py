"""The profiles that a config names, by the names of its models. Needs no torch, unless it times."""

from collections.abc import Callable
from pathlib import Path

from blocks._checks import fail
from blocks.sched.profile import Profile, bundled_profile, bundled_profiles, load_profile
from recipes.place.config import PlaceConfig, PlacedModel

Measure = Callable[[PlaceConfig, PlacedModel], Profile]


def profiles_of(config: PlaceConfig, measure: Measure) -> dict[str, Profile]:
    """
    Args:
        measure: times a model whose profile is ``measure`` on this machine.

    Raises:
        ValueError: a file that is no profile, or a name that none is bundled under.
    """
    return {model.name: _profile(config, model, measure) for model in config.models}


def _profile(config: PlaceConfig, model: PlacedModel, measure: Measure) -> Profile:
    if model.profile == "measure":
        return measure(config, model).renamed(model.name)
    path = Path(model.profile)
    if path.is_file():
        return load_profile(path).renamed(model.name)
    if model.profile not in bundled_profiles():
        expected = f"a profile file, measure, or one of {bundled_profiles()}"
        raise fail(f"{model.name}.profile", expected, repr(model.profile))
    return bundled_profile(model.profile).renamed(model.name)
