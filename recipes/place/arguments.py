"""What the verbs of ``python -m recipes.place`` have in common on their command lines."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from recipes.place.config import PlaceConfig
from recipes.place.config_file import read_config
from recipes.settings import add_settings, in_any_order


def config_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser of ``CONFIG key=value ...``; a verb adds its own options.

    Parse with ``parse_intermixed_args`` and give the outcome to ``config_of``.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m recipes.place {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("config", type=Path, help="the file that names models and devices")
    add_settings(made, "laid over the file: num_devices=4, MODEL.rate=3 and the like")
    return made


def config_of(options: argparse.Namespace, more: Sequence[str] = ()) -> PlaceConfig:
    """The file that ``options`` name, with settings laid over; ``more`` come last.

    Raises:
        ValueError: as ``read_config``.
    """
    config, settings = in_any_order(str(options.config), options.settings)
    return read_config(Path(config), [*settings, *more])
