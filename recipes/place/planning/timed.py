"""``timed``: the profile of a model by running it on this machine, kept for the next time."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from blocks.sched.profile import Profile, load_profile, save_profile
from recipes.place.config import PlaceConfig, PlacedModel

Say = Callable[[str], None]


ROUNDS = 3
"""Visits to each point: a placement asks for less than a comparison does."""


def timed(config: PlaceConfig, model: PlacedModel, say: Say) -> Profile:
    """Run the model's engine with the limits of the config, in every layout of at most as many
    processes as there are devices on a node and, on a CPU, cores; or read what was found the last
    time.

    Profiles are kept in ``$LLM_BLOCKS_CACHE/profiles`` (``~/.cache/llm-blocks`` where it is not
    set), by the model's files, the engine's limits, the number of devices and the machine.

    Raises:
        ValueError: a folder that is no model.
    """
    from recipes.model import read_config
    from recipes.place.group_spec import group_spec
    from recipes.place.measure import Points, measure_profile
    from recipes.place.measure.layouts import layouts

    folder = folder_of(model)
    kept = kept_at(config, folder)
    if kept.is_file():
        say(f"{model.name}: timed before, {kept} (delete it to time anew)")
        return load_profile(kept)
    cluster, limits = config.cluster, config.engine
    most = cluster.devices_per_node
    if cluster.device == "cpu":  # ranks that share a core would be timed waiting for each other
        most = min(most, max(1, len(os.sched_getaffinity(0)) // limits.num_threads))
    found_layouts = layouts(read_config(folder), most)
    spec = group_spec(config, "timed")
    say(f"{model.name}: timing it as {', '.join(f'{tp} x {pp}' for tp, pp in found_layouts)}")
    quarters = [0]

    def progress(done: int, total: int) -> None:
        if done * 4 // total > quarters[0]:
            quarters[0] = done * 4 // total
            say(f"  {done} of {total} points")

    points = Points(rounds=ROUNDS)
    found = measure_profile(folder, found_layouts, limits=spec, points=points, progress=progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_profile(found, kept)
    say(f"  kept as {kept}")
    return found


def folder_of(model: PlacedModel) -> Path:
    """Where a model's files are."""
    from recipes.model.bundled import model_folder

    return model_folder(model.folder or "")


def kept_at(config: PlaceConfig, folder: Path) -> Path:
    """Where the profile of a model is kept; another file when anything that counts is another."""
    from recipes.place.measure.machine import machine_line

    files = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(folder.glob("*"))
        if file.suffix in (".json", ".safetensors")
    ]
    facts = [
        str(folder.resolve()),
        files,
        dataclasses.asdict(config.engine),
        config.cluster.device,
        config.cluster.devices_per_node,
        machine_line(config.engine.num_threads),
        "activations",  # are in it
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    root = os.environ.get("LLM_BLOCKS_CACHE", Path.home() / ".cache" / "llm-blocks")
    return Path(root) / "profiles" / f"{folder.resolve().name}-{digest}.profile"
