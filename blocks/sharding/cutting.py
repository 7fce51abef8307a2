"""Tensors under a ``Cut``: taken apart, put together, and the gradients of shared runs summed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from blocks._checks import check
from blocks.sharding.cut import Cut
from blocks.sharding.group import Group, sum_in_order


def cut_tensor(whole: Tensor, cut: Cut, rank: int) -> Tensor:
    """What a rank holds, in memory of its own."""
    check(whole.shape[cut.dim] == cut.size, f"dim {cut.dim}", cut.size, whole.shape[cut.dim])
    if whole.is_meta:  # torch would import a compiler for it
        return torch.empty(cut.local_shape(whole.shape, rank), dtype=whole.dtype, device="meta")
    parts = [whole.narrow(cut.dim, run.start, run.size) for run in cut.runs[rank]]
    return torch.cat([*parts, whole.narrow(cut.dim, 0, 0)], cut.dim)


def join_tensors(parts: Sequence[Tensor], cut: Cut) -> Tensor:
    """The whole from what every rank holds; of a run held several times, the last."""
    shape = list(parts[0].shape)
    shape[cut.dim] = cut.size
    whole = parts[0].new_empty(shape)
    for part, runs in zip(parts, cut.runs, strict=True):
        pieces = part.split([run.size for run in runs], cut.dim) if runs else ()
        for run, piece in zip(runs, pieces, strict=True):
            whole.narrow(cut.dim, run.start, run.size).copy_(piece)
    return whole


def gather_cut(local: Tensor, cut: Cut, group: Group) -> Tensor:
    """The whole tensor, on every rank of a group. Not differentiable."""
    longest = max(cut.local_size(rank) for rank in range(group.size))
    padded = _pad(local, cut.dim, longest).contiguous()
    parts = [
        part.narrow(cut.dim, 0, cut.local_size(rank))
        for rank, part in enumerate(group.all_gather(padded))
    ]
    return join_tensors(parts, cut)


@torch.no_grad()
def sum_shared(grad: Tensor, cut: Cut, group: Group) -> None:
    """Add up, in place, the gradients of runs that are held more than once, in rank order.

    Sends only such runs, those of a rank together. Afterwards all copies have the same bits.
    """
    shared = cut.shared()
    if not shared:
        return
    mine = [
        (run, offset)
        for run, places in shared.items()
        for rank, offset in places
        if rank == group.rank
    ]
    sizes = [
        sum(run.size for run, places in shared.items() for at, _ in places if at == rank)
        for rank in range(group.size)
    ]
    pieces = [grad.narrow(cut.dim, offset, run.size) for run, offset in mine]
    held = torch.cat([*pieces, grad.narrow(cut.dim, 0, 0)], cut.dim)
    every = group.all_gather(_pad(held, cut.dim, max(sizes)).contiguous())
    addends: dict[object, list[Tensor]] = {run: [] for run in shared}
    for rank, sent in enumerate(every):
        offset = 0
        for run, places in shared.items():
            for at, _ in places:
                if at == rank:
                    addends[run].append(sent.narrow(cut.dim, offset, run.size))
                    offset += run.size
    for run, offset in mine:
        grad.narrow(cut.dim, offset, run.size).copy_(sum_in_order(addends[run]))


def _pad(tensor: Tensor, dim: int, size: int) -> Tensor:
    if tensor.shape[dim] == size:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = size - tensor.shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)
