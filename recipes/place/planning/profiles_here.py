"""``profiles_here``: the profiles that a config names, some of them timed on this machine."""

import contextlib
import os
from collections.abc import Callable

from blocks.sched.profile import Profile
from recipes.place.config import PlaceConfig, PlacedModel
from recipes.place.profiles import profiles_of

Say = Callable[[str], None]


def profiles_here(config: PlaceConfig, say: Say) -> dict[str, Profile]:
    """Read what is named; time models whose profile is ``measure``, each folder once.

    Raises:
        ValueError: as ``profiles_of``, or a folder that is no model.
    """
    known: dict[str, Profile] = {}

    def measure(config: PlaceConfig, model: PlacedModel) -> Profile:
        assert model.folder is not None  # the config asks for one to measure
        if model.folder not in known:
            known[model.folder] = timed(config, model.folder, say)
        return known[model.folder]

    return profiles_of(config, measure)


def timed(config: PlaceConfig, folder: str, say: Say) -> Profile:
    """Run the engine of a model in every layout of at most as many processes as there are cores and
    devices, with the limits of the config."""
    from recipes.model import read_config
    from recipes.model.bundled import bundled_model
    from recipes.place.group import GroupSpec
    from recipes.place.measure import measure_profile
    from recipes.serve.parallel import Layout

    path = bundled_model() if folder == "bundled" else folder
    model, cluster, limits = read_config(path), config.cluster, config.engine
    most = min(cluster.num_devices, os.cpu_count() or 1)
    layouts = []
    for tp, pp in ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)):
        with contextlib.suppress(ValueError):  # it cannot be cut so
            Layout(tp, pp).check(model)
            layouts += [(tp, pp)] if tp * pp <= most else []
    spec = GroupSpec(
        group="timed",
        device=cluster.device,
        num_threads=limits.num_threads,
        token_budget=limits.token_budget,
        max_num_seqs=limits.max_num_seqs,
        block_size=limits.block_size,
        max_model_len=limits.max_model_len,
    )
    shapes = ", ".join(f"{tp} x {pp}" for tp, pp in layouts)
    say(f"timing {folder} on this machine as {shapes}")
    told = [0]

    def progress(done: int, total: int) -> None:
        if done * 4 // total > told[0]:
            told[0] = done * 4 // total
            say(f"  {done} of {total} points")

    return measure_profile(path, layouts, limits=spec, progress=progress)
