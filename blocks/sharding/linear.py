"""Linear layers whose matrix is cut over a group: by columns of the output, or by the rows summed.

A column-parallel layer followed by a row-parallel one costs a collective at each end and none
between. With ``num_tokens`` the ends are sequence parallel: outside of the pair every rank holds a
run of the tokens (dim 0), inside all of them.

Reference:
    Shoeybi et al., "Megatron-LM", 2019, section 3; Korthikanti et al., "Reducing activation
    recomputation in large transformer models", 2022, section 4.2.2 (sequence parallel).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from blocks._checks import check
from blocks.sharding.collectives import all_gather, all_reduce, identity, reduce_scatter
from blocks.sharding.group import Group


def column_linear(
    x: Float[Tensor, "*rows num_in"],
    weight: Float[Tensor, "num_out_local num_in"],
    bias: Float[Tensor, " num_out_local"] | None,
    group: Group,
    *,
    num_tokens: int | None = None,
) -> Float[Tensor, "*all_rows num_out_local"]:
    """This rank's columns of ``x @ whole.T + bias``: the output is ``Shard(-1)``.

    Args:
        x: alike on all ranks; with ``num_tokens`` this rank's run of the rows.
        weight, bias: this rank's rows of the whole.
        num_tokens: rows of x on all ranks together, where they are sharded.
    """
    return F.linear(enter(x, group, num_tokens=num_tokens), weight, bias)


def row_linear(
    x: Float[Tensor, "*rows num_in_local"],
    weight: Float[Tensor, "num_out num_in_local"],
    bias: Float[Tensor, " num_out"] | None,
    group: Group,
    *,
    num_tokens: int | None = None,
) -> Float[Tensor, "*kept_rows num_out"]:
    """``x @ whole.T + bias`` for an x sharded in its last dim: the ranks' products are summed.

    Args:
        x: this rank's columns.
        weight: this rank's columns of the whole.
        bias: whole and alike on all ranks; added once, after the sum. With ``num_tokens`` its
            gradient is that of this rank's rows: sum it over the group.
        num_tokens: rows of x; where given, only this rank's run of the result comes back.
    """
    if num_tokens is not None:
        check(x.shape[0] == num_tokens, "num_tokens", f"rows of x ({x.shape[0]})", num_tokens)
    y = leave(F.linear(x, weight), group, num_tokens=num_tokens)
    return y if bias is None else y + bias


def enter(x: Tensor, group: Group, *, num_tokens: int | None = None) -> Tensor:
    """What stands before a column-parallel layer: backward sums the gradients of the ranks.

    Args:
        num_tokens: size of dim 0 on all ranks together, where x is this rank's run of it.
    """
    if num_tokens is None:
        return identity(x, group)
    return all_gather(x, group, 0, size=num_tokens, gradient="partial")


def leave(x: Tensor, group: Group, *, num_tokens: int | None = None) -> Tensor:
    """What stands behind a row-parallel layer: the sum over ranks, or this rank's run of it."""
    return all_reduce(x, group) if num_tokens is None else reduce_scatter(x, group, 0)
