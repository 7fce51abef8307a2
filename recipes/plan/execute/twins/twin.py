"""``twin_of``: the local form of an operation, where it has one of its own."""

from collections.abc import Callable
from typing import Any

import torch

from recipes.plan.execute.twins import (
    attention,
    contraction,
    draws,
    lookups,
    norms,
    reductions,
    shapes,
)

aten = torch.ops.aten

Twin = Callable[..., Any]
"""(call, the operation, *its arguments with local parts for tensors) -> its local results."""

_TWINS: dict[Twin, tuple[str, ...]] = {
    contraction.contracted: ("einsum",),
    shapes.reshaped: ("reshape", "view", "_unsafe_view", "_reshape_alias"),
    shapes.expanded: ("expand",),
    shapes.made: ("full", "zeros", "ones", "empty"),
    shapes.made_like: (
        *("new_zeros", "new_ones", "new_full", "new_empty"),
        *("slice_backward", "select_backward"),
    ),
    shapes.counted: ("arange",),
    lookups.embedded: ("embedding",),
    lookups.embedding_gradient: ("embedding_dense_backward",),
    lookups.gathered: ("gather",),
    lookups.scattered: ("scatter", "scatter_add"),
    lookups.selected: ("index_select",),
    lookups.indexed: ("index",),
    lookups.index_put: ("index_put",),
    reductions.largest: ("amax", "max", "any"),
    reductions.smallest: ("amin", "min", "all"),
    draws.dropped: ("native_dropout",),
    draws.bernoulli: ("bernoulli",),
    draws.uniform_like: ("rand_like",),
    draws.uniform: ("rand",),
    attention.attended: ("_scaled_dot_product_flash_attention_for_cpu",),
    attention.attention_gradient: ("_scaled_dot_product_flash_attention_for_cpu_backward",),
    norms.group_normed: ("native_group_norm",),
    norms.group_norm_gradient: ("native_group_norm_backward",),
    norms.layer_norm_gradient: ("native_layer_norm_backward",),
}
_BY_NAME = {f"aten::{name}": twin for twin, names in _TWINS.items() for name in names}


def twin_of(target: Any) -> Twin | None:
    """What to call instead of an operation of torch; None where it does the same on a part."""
    return _BY_NAME.get(target.name().split(".")[0]) if hasattr(target, "name") else None
