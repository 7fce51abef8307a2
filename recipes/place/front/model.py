"""``FrontModel``: what the front door itself must know of a model."""

import dataclasses
import math
from pathlib import Path

from blocks._checks import check
from recipes.model import read_config
from recipes.model.bundled import model_folder
from recipes.model.tokenizer import Tokenizer
from recipes.place.config import PlaceConfig, PlacedModel
from recipes.place.fleet import Slo


@dataclasses.dataclass(frozen=True)
class FrontModel:
    """
    name: what clients call it. folder: where groups read it.
    max_model_len: longest prompt plus output, wherever it is loaded.
    slo: limits of requests that bring none of their own.
    """

    name: str
    folder: Path
    tokenizer: Tokenizer
    max_model_len: int
    vocab_size: int
    slo: Slo


def front_model(config: PlaceConfig, model: PlacedModel) -> FrontModel:
    """Read tokenizer and limits; no weights.

    Raises:
        ValueError: no folder, or one that cannot be served.
    """
    hint = "name its folder, or leave the model out to serve the others"
    check(model.folder is not None, f"{model.name}.folder", "one to serve", "none", hint)
    folder = model_folder(model.folder or "")
    known = read_config(folder)
    return FrontModel(
        model.name,
        folder.resolve(),
        Tokenizer.from_folder(folder),
        min(config.engine.max_model_len, known.max_positions),
        known.vocab_size,
        Slo(model.ttft_s or math.inf, model.tpot_s or math.inf),
    )
