"""Rotary settings in ``config.json``, in the styles of transformers 4 and 5.

Version 4 writes ``rope_theta`` and, when scaled, ``rope_scaling``; version 5 writes one
``rope_parameters``. The older style is read by both, so it is the one written.
"""

import math
from typing import Any

from recipes.model.config import Rope
from recipes.model.hf_fields import Fields

KINDS = {"default": "plain", "llama3": "llama3", "yarn": "yarn"}
NAMES = {kind: name for name, kind in KINDS.items()}


def read_rope(fields: Fields, default_theta: float = 10000.0) -> Rope:
    """The rotary settings of a config file."""
    key = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    scaling = fields.object(key)
    theta = scaling.number("rope_theta", fields.number("rope_theta", default_theta))
    if not theta > 1:
        raise fields.wrong("rope_theta", "a number above 1")
    word = "rope_type" if scaling.has("rope_type") else "type"
    kind = scaling.choice(word, KINDS, "default")
    for holder in (fields, scaling):
        if holder.number("partial_rotary_factor", 1.0) != 1.0:
            raise holder.wrong("partial_rotary_factor", "1.0 (all of head_dim rotated)")
    if kind == "plain":
        return Rope(theta)
    original = fields.integer(
        "original_max_position_embeddings",
        scaling.integer(
            "original_max_position_embeddings", fields.integer("max_position_embeddings")
        ),
    )
    factor = scaling.number("factor")
    if not (factor >= 1 and original > 0):
        raise scaling.wrong("factor", "a factor of at least 1 over a positive original length")
    if kind == "llama3":
        low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
        if not 0 < low < high:
            raise scaling.wrong("high_freq_factor", f"a number above low_freq_factor ({low})")
        return Rope(theta, "llama3", factor, original, low, high)
    return Rope(
        theta,
        "yarn",
        factor,
        original,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        truncate=scaling.flag("truncate", True),
        attention_factor=_attention_factor(scaling, factor),
    )


def _attention_factor(scaling: Fields, factor: float) -> float | None:
    if scaling.has("attention_factor"):
        return scaling.number("attention_factor")
    if scaling.raw.get("mscale") and scaling.raw.get("mscale_all_dim"):
        over, under = scaling.number("mscale"), scaling.number("mscale_all_dim")
        return (0.1 * over * math.log(factor) + 1) / (0.1 * under * math.log(factor) + 1)
    return None


def write_rope(rope: Rope) -> dict[str, Any]:
    """The rotary keys of a config file."""
    if rope.kind == "plain":
        return {"rope_theta": rope.theta, "rope_scaling": None}
    scaling: dict[str, Any] = {
        "rope_type": NAMES[rope.kind],
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_max_positions,
    }
    if rope.kind == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
    else:
        scaling |= {
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "truncate": rope.truncate,
        }
        if rope.attention_factor is not None:
            scaling["attention_factor"] = rope.attention_factor
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
