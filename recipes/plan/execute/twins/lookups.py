"""Lookups in a dim that is cut, and what is added back to one.

A rank looks up what falls into its run and gives zeros for the rest: addends of the result.
"""

from typing import Any

import torch
from torch import Tensor

from blocks.sharding import Run
from recipes.plan.execute.local_call import LocalCall


def _within(index: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """Places counted from where the run begins, 0 for those outside; and which are inside."""
    inside = (index >= run.start) & (index < run.stop)
    return torch.where(inside, index - run.start, 0), inside


def _is_cut(call: LocalCall, at: int, dim: int) -> bool:
    return call.input_runs(at)[dim].size < call.inputs[at].shape[dim]


def embedded(call: LocalCall, target: Any, weight: Tensor, index: Tensor, *rest: Any) -> Tensor:
    """Rows of a table: ``embedding``."""
    if not _is_cut(call, 0, 0):
        return target(weight, index, *rest)
    place, inside = _within(index, call.input_runs(0)[0])
    return target(weight, place).mul_(inside.unsqueeze(-1))


def embedding_gradient(
    call: LocalCall,
    target: Any,
    grad: Tensor,
    index: Tensor,
    num_rows: int,
    padding_index: int = -1,
    *rest: Any,
) -> Tensor:
    """Sums of the gradients of every row: ``embedding_dense_backward``.

    In float32 or wider, and rounded at the end: a frequent token's sum would soon be too large for
    a narrow number to grow any more.
    """
    kept = grad.dtype
    grad = grad.to(torch.promote_types(kept, torch.float32))
    run = call.output_runs(0)[0]
    if run.size == call.outputs[0].shape[0]:
        return target(grad, index, num_rows, padding_index, *rest).to(kept)
    place, inside = _within(index, run)
    if padding_index >= 0:
        inside = inside & (index != padding_index)
    return target(grad * inside.unsqueeze(-1), place, run.size, -1, *rest).to(kept)


def gathered(call: LocalCall, target: Any, x: Tensor, dim: int, index: Tensor, **kw: Any) -> Tensor:
    """Entries of a dim, place by place: ``gather``."""
    if not x.dim() or not _is_cut(call, 0, dim):
        return target(x, dim, index, **kw)
    place, inside = _within(index, call.input_runs(0)[dim])
    return target(x, dim, place, **kw).mul_(inside)


def scattered(
    call: LocalCall, target: Any, x: Tensor, dim: int, index: Tensor, value: Any, **kw: Any
) -> Tensor:
    """Values put at, or added to, entries of a dim: ``scatter``, ``scatter_add``.

    What falls outside of the run leaves what is at the run's first entry as it is. Where several
    values go to a row it goes to an entry more instead, which is cut off.
    """
    if not x.dim() or not _is_cut(call, 0, dim):
        return target(x, dim, index, value, **kw)
    run = call.output_runs(0)[dim]
    place, inside = _within(index, run)
    if "scatter_add" in str(target):
        return target(x, dim, place, torch.where(inside, value, 0), **kw)
    if index.shape[dim] == 1:
        before = torch.gather(x, dim, place)
        return target(x, dim, place, torch.where(inside, value, before), **kw)
    shape = list(x.shape)
    shape[dim] = 1
    wide = torch.cat([x, x.new_zeros(shape)], dim)
    place = torch.where(inside, place, run.size)
    return target(wide, dim, place, value, **kw).narrow(dim, 0, run.size).contiguous()


def selected(call: LocalCall, target: Any, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Entries of a dim by number: ``index_select``."""
    if not _is_cut(call, 0, dim):
        return target(x, dim, index)
    place, inside = _within(index, call.input_runs(0)[dim])
    shape = [1] * x.dim()
    shape[dim] = -1
    return target(x, dim, place).mul_(inside.view(shape))


def indexed(call: LocalCall, target: Any, x: Tensor, indices: Any) -> Tensor:
    """``index``; only a dim that is looked up alone can be cut."""
    at = [dim for dim, index in enumerate(indices) if index is not None]
    if len(at) != 1 or not _is_cut(call, 0, at[0]):
        return target(x, indices)
    (dim,) = at
    place, inside = _within(indices[dim], call.input_runs(0)[dim])
    found = target(x, [*indices[:dim], place, *indices[dim + 1 :]])
    return found.mul_(inside.view(list(inside.shape) + [1] * (x.dim() - dim - 1)))


def index_put(
    call: LocalCall, target: Any, x: Tensor, indices: Any, values: Tensor, accumulate: bool = False
) -> Tensor:
    """Values added to entries: ``index_put``; a dim that is cut is looked up alone."""
    at = [dim for dim, index in enumerate(indices) if index is not None]
    if len(at) != 1 or not _is_cut(call, 0, at[0]):
        return target(x, indices, values, accumulate)
    assert accumulate, "rules cut no dim whose entries are replaced"
    (dim,) = at
    place, inside = _within(indices[dim], call.output_runs(0)[dim])
    inside = inside.view(list(inside.shape) + [1] * (x.dim() - dim - 1))
    places = [*indices[:dim], place, *indices[dim + 1 :]]
    return target(x, places, torch.where(inside, values, 0), True)
