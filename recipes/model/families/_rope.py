"""Rotary settings in ``config.json``, in the styles of transformers 4 and 5.

Version 4 writes ``rope_theta`` and, when scaled, ``rope_scaling``; version 5 writes one
``rope_parameters``. The older style is read by both, so it is the one written.
"""

from typing import Any

from blocks.ops import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from recipes.model.config import Rope
from recipes.model.hf_fields import Fields

DEFAULT = "default"


def read_rope(fields: Fields, default_theta: float = 10000.0) -> Rope:
    """The rotary settings of a config file."""
    key = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    scaling = fields.object(key)
    theta = scaling.number("rope_theta", fields.number("rope_theta", default_theta))
    if not theta > 1:
        raise fields.wrong("rope_theta", "a number above 1")
    for holder in (fields, scaling):
        if holder.number("partial_rotary_factor", 1.0) != 1.0:
            raise holder.wrong("partial_rotary_factor", "1.0 (all of head_dim rotated)")
    word = "rope_type" if scaling.has("rope_type") else "type"
    read = scaling.choice(word, READERS, DEFAULT)
    if read is None:
        return Rope(theta)
    factor = scaling.number("factor")
    if factor < 1:
        raise scaling.wrong("factor", "at least 1")
    return Rope(theta, read(fields, scaling, factor))


def _linear(_: Fields, scaling: Fields, factor: float) -> RopeScaling:
    return LinearScaling(factor)


def _llama3(fields: Fields, scaling: Fields, factor: float) -> RopeScaling:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if not 0 < low < high:
        raise scaling.wrong("high_freq_factor", f"a number above low_freq_factor ({low})")
    return Llama3Scaling(factor, low, high, _original_length(fields, scaling))


def _yarn(fields: Fields, scaling: Fields, factor: float) -> RopeScaling:
    fast, slow = scaling.number("beta_fast", 32.0), scaling.number("beta_slow", 1.0)
    if not fast >= slow > 0:
        raise scaling.wrong("beta_slow", f"a positive number up to beta_fast ({fast})")
    return YarnScaling(
        factor,
        _original_length(fields, scaling),
        fast,
        slow,
        scaling.optional_number("attention_factor"),
        scaling.optional_number("mscale"),
        scaling.optional_number("mscale_all_dim"),
        scaling.flag("truncate", True),
    )


READERS = {DEFAULT: None, "linear": _linear, "llama3": _llama3, "yarn": _yarn}


def _original_length(fields: Fields, scaling: Fields) -> int:
    key = "original_max_position_embeddings"
    length = fields.integer(key, scaling.integer(key, fields.size("max_position_embeddings")))
    if not length > 0:
        raise scaling.wrong(key, "a positive number of tokens")
    return length


def write_rope(rope: Rope) -> dict[str, Any]:
    """The rotary keys of a config file."""
    scaling = None if rope.scaling is None else _written(rope.scaling)
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def _written(scaling: RopeScaling) -> dict[str, Any]:
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    keys: dict[str, Any] = {
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }
    if isinstance(scaling, Llama3Scaling):
        return keys | {
            "rope_type": "llama3",
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    optional = {
        "attention_factor": scaling.attention_factor,
        "mscale": scaling.mscale,
        "mscale_all_dim": scaling.mscale_all_dim,
    }
    return keys | {
        "rope_type": "yarn",
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
        **{key: value for key, value in optional.items() if value is not None},
    }
