"""Which layers have a sliding window, as ``config.json`` says it."""

from recipes.model.hf_fields import Fields

FULL, SLIDING = "full_attention", "sliding_attention"


def read_layer_types(
    fields: Fields, num_layers: int, window: int | None, default: list[str]
) -> tuple[int | None, ...]:
    """The window of each layer from ``layer_types``, or from the family's rule without it."""
    kinds = fields.raw.get("layer_types") or default[:num_layers]
    if not isinstance(kinds, list) or not all(kind in (FULL, SLIDING) for kind in kinds):
        raise fields.wrong("layer_types", f"a list of {FULL!r} and {SLIDING!r}")
    if len(kinds) != num_layers:
        raise fields.wrong("layer_types", f"one entry per layer ({num_layers})")
    if window is None and SLIDING in kinds:
        raise fields.wrong("sliding_window", "a window, as layer_types has sliding layers")
    if SLIDING not in kinds:
        return ()
    return tuple(window if kind == SLIDING else None for kind in kinds)


def write_layer_types(windows: tuple[int | None, ...], num_layers: int) -> list[str]:
    """``layer_types`` of a config file."""
    windows = windows or (None,) * num_layers
    return [FULL if window is None else SLIDING for window in windows]
