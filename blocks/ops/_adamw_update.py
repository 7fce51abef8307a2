"""What runs under ``adamw_step`` and ``AdamW``: clipping and the update, by torch or by Triton."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blocks import _checks
from blocks.ops import reference

TILE = 2048
"""Elements of one Triton program."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Step = int | Tensor | Sequence[Tensor]


class Settings(NamedTuple):
    """One group's numbers."""

    lr: float | Tensor
    betas: tuple[float, float]
    eps: float
    weight_decay: float


class Clip(NamedTuple):
    """norm: of all gradients, None where not asked. factor: of each gradient, None for 1, NaN to
    change nothing."""

    norm: Tensor | None
    factor: Tensor | None


def clip_factor(
    grads: Sequence[Tensor],
    max_norm: float | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    impl: str,
) -> Clip:
    """What gradients must be multiplied by; a global norm where ``max_norm`` asks for one."""
    norm = None
    if max_norm is not None and grads:
        run = _triton_clip if impl == "triton" else _torch_clip
        norm, factor = run(grads, max_norm, grad_scale)
    else:
        factor = None if grad_scale is None else grad_scale.float().reciprocal()
    if found_inf is not None:
        one = torch.ones((), device=found_inf.device)
        factor = torch.where(found_inf != 0, torch.nan, one if factor is None else factor)
    return Clip(norm, factor)


def update(
    lists: tuple[Sequence[Tensor], ...],
    step: Step,
    settings: Settings,
    factor: Tensor | None,
    impl: str,
) -> None:
    """The step itself, over tensors that were checked.

    What is written counts as written (``_version``), as by torch's operations: copies of parameters
    that somebody keeps are seen to be old.
    """
    filled = [i for i, param in enumerate(lists[0]) if param.numel()]
    if not filled:
        return
    if len(filled) < len(lists[0]):
        lists = tuple([one[i] for i in filled] for one in lists)
        step = [step[i] for i in filled] if isinstance(step, Sequence) else step
    if isinstance(settings.lr, Tensor) and settings.lr.device != lists[0][0].device:
        settings = settings._replace(lr=float(settings.lr))  # of a host tensor
    written = [t for one in (lists[0], *lists[2:]) for t in one if not t.is_inference()]
    torch.autograd.graph.increment_version(
        written
    )  # neither the launch nor torch's fused step does
    if impl == "triton":
        _with_one_layout(lists, lambda *alike: _triton_update(alike, step, settings, factor))
        return
    if factor is not None:
        number = float(factor)  # on a CPU there is nothing to wait for
        if math.isnan(number):
            return
        if number != 1.0:
            scaled = [grad * number for grad in lists[1]]
            lists = (lists[0], scaled, *lists[2:])
    if len({t.dtype for one in lists for t in one}) == 1:
        _with_one_layout(lists, lambda *alike: _torch_update(alike, step, settings))
    else:
        reference.adamw_step(*lists, step=step, **settings._asdict())


def _with_one_layout(lists: tuple[Sequence[Tensor], ...], run: Callable[..., None]) -> None:
    """Call ``run`` on lists in which a parameter and its companions lie element beside element."""
    alike = [list(one) for one in lists]
    back: list[tuple[Tensor, Tensor]] = []
    for i, row in enumerate(zip(*lists, strict=True)):
        strides = row[0].stride()
        if _is_dense(row[0]) and all(t.stride() == strides for t in row[1:]):
            continue
        for column, tensor in enumerate(row):
            if not tensor.is_contiguous():
                alike[column][i] = tensor.contiguous()
                if column != 1:  # gradients are not written
                    back.append((tensor, alike[column][i]))
    run(*alike)
    for tensor, copy in back:
        tensor.copy_(copy)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill a run of memory, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    order = sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))
    return tensor.permute(order).is_contiguous()


def _steps(step: Step, params: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(step, Sequence):
        return list(step)
    one = step if isinstance(step, Tensor) else torch.tensor(float(step))
    return [one] * len(params)


def _torch_update(lists: tuple[Sequence[Tensor], ...], step: Step, settings: Settings) -> None:
    lr, betas, eps, weight_decay = settings
    fused: Any = torch._fused_adamw_
    fused(
        *(list(one) for one in lists),
        [],
        _steps(step, lists[0]),
        lr=float(lr),
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def _torch_clip(
    grads: Sequence[Tensor], max_norm: float, grad_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    norms = torch._foreach_norm([grad.float() for grad in grads])
    return reference.clip_by_norm(
        torch.linalg.vector_norm(torch.stack(norms)), max_norm, grad_scale
    )


def _triton_clip(
    grads: Sequence[Tensor], max_norm: float, grad_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    from blocks.ops._triton.adamw import _clip_kernel, _squares_kernel

    dense = [grad if _is_dense(grad) else grad.contiguous() for grad in grads if grad.numel()]
    device = grads[0].device
    squares: list[Tensor] = []
    for dtype in dict.fromkeys(grad.dtype for grad in dense):
        same = [grad for grad in dense if grad.dtype == dtype]
        table = _table((same,) * 4, None)
        squares.append(torch.empty(table.num_chunks, device=device))
        launch: Any = _squares_kernel[(table.num_chunks,)]
        launch(
            table.rows,
            table.owners,
            squares[-1],
            GRAD=_triton_dtype(dtype),
            ALIGNED=table.aligned,
            TILE=TILE,
            num_warps=8,
        )
    partials = (
        torch.cat(squares) if len(squares) > 1 else (*squares, torch.zeros(1, device=device))[0]
    )
    norm, factor = torch.empty(2, device=device).unbind()
    launch = _clip_kernel[(1,)]
    launch(partials, grad_scale, norm, factor, partials.numel(), max_norm, TILE=1024)
    return norm, factor


def _triton_update(
    lists: tuple[Sequence[Tensor], ...], step: Step, settings: Settings, factor: Tensor | None
) -> None:
    from blocks.ops._triton.adamw import _adamw_kernel

    for name, one in zip(("params", "grads", "moments"), lists, strict=False):
        _checks.check_dtype(name, one[0], DTYPES, "with impl='triton'")
    lr, betas, eps, weight_decay = settings
    counted = isinstance(step, int)
    table = _table(lists, None if counted else _steps(step, lists[0]))
    launch: Any = _adamw_kernel[(table.num_chunks,)]
    launch(
        table.rows,
        table.owners,
        factor,
        float(step) if counted else None,
        lr,
        weight_decay,
        eps,
        *(1.0 - beta for beta in betas),
        *(math.log2(beta) if beta else -1e30 for beta in betas),
        PARAM=_triton_dtype(lists[0][0].dtype),
        GRAD=_triton_dtype(lists[1][0].dtype),
        STATE=_triton_dtype(lists[2][0].dtype),
        LR_POINTER=isinstance(lr, Tensor),
        ALIGNED=table.aligned,
        TILE=TILE,
        num_warps=8,
    )


def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[
        dtype
    ]


class _Table(NamedTuple):
    """rows: [num_tensors, 7] int64. owners: [num_chunks] int32. aligned: all addresses by 16."""

    rows: Tensor
    owners: Tensor
    num_chunks: int
    aligned: bool


_OF_GRAPHS: dict[int, _Table] = {}
"""Tables that graphs read at every replay: kept, whatever the cache forgets."""


def _table(lists: Sequence[Sequence[Tensor]], steps: list[Tensor] | None) -> _Table:
    addresses = tuple(tuple(t.data_ptr() for t in one) for one in lists)
    of_steps = None if steps is None else tuple(t.data_ptr() for t in steps)
    sizes = tuple(t.numel() for t in lists[0])
    device = lists[0][0].device
    table = _cached_table(device, addresses, of_steps, sizes)
    if _is_capturing(device):
        _OF_GRAPHS[id(table)] = table
    return table


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@functools.lru_cache(maxsize=32)
def _cached_table(
    device: torch.device,
    addresses: tuple[tuple[int, ...], ...],
    steps: tuple[int, ...] | None,
    sizes: tuple[int, ...],
) -> _Table:
    """The table of these addresses, on the device; it keeps no tensor alive."""
    chunks = [-(-size // TILE) for size in sizes]
    rows, first = [], 0
    for i, (size, count) in enumerate(zip(sizes, chunks, strict=True)):
        rows.append([*(one[i] for one in addresses), steps[i] if steps else 0, size, first])
        first += count
    owners = torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(torch.tensor(chunks))
    aligned = all(address % 16 == 0 for one in addresses for address in one)
    on_host = [torch.tensor(rows), owners]
    if device.type == "cuda":
        on_host = [t.pin_memory() for t in on_host]
    moved = [t.to(device, non_blocking=True) for t in on_host]
    return _Table(moved[0], moved[1], first, aligned)
