"""A ``TrainConfig`` from ``key=value`` texts."""

from collections.abc import Sequence

from recipes import settings
from recipes.train.config import TrainConfig
from recipes.train.dial import dial


def override(config: TrainConfig, texts: Sequence[str]) -> TrainConfig:
    """``recipes.settings.override`` of a run's settings, with the dial.

    ``depth=N`` is one dial for many fields (see ``dial``); it is turned first, whatever its place
    among the settings, so that fields given by name win.

    Raises:
        ValueError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    depths = [text for text in texts if text.startswith("depth=")]
    for text in depths:
        config = dial(config, settings.parse("depth", text.removeprefix("depth="), int))
    rest = [text for text in texts if text not in depths]
    return settings.override(config, rest, see="recipes/train/config.py", also=("depth",))
