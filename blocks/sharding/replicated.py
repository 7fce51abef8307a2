"""``sum_gradients``: data parallelism by hand, once a step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from blocks._checks import check_positive
from blocks.sharding.group import Group


@torch.no_grad()
def sum_gradients(
    parameters: Iterable[nn.Parameter], group: Group, *, bucket_bytes: int = 25_000_000
) -> None:
    """Sum ``.grad`` over a group, in place, several parameters in one all-reduce.

    For gradients made by ``torch.autograd.grad``, which the hooks of
    ``DistributedDataParallel`` do not see; a module wrapped in it runs under its ``no_sync``.

    Args:
        parameters: in the same order on all ranks, those with gradients the same on all ranks.
        bucket_bytes: of gradients sent together.
    """
    check_positive("bucket_bytes", bucket_bytes)
    bucket: list[Tensor] = []
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        full = sum(t.nbytes for t in bucket) + grad.nbytes > bucket_bytes
        if bucket and (full or grad.dtype != bucket[0].dtype):
            _sum_bucket(bucket, group)
            bucket = []
        bucket.append(grad)
    if bucket:
        _sum_bucket(bucket, group)


def _sum_bucket(grads: list[Tensor], group: Group) -> None:
    total = group.all_reduce(torch.cat([grad.flatten() for grad in grads]))
    for grad, part in zip(grads, total.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))
