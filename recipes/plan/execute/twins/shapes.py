"""Operations that are told a size: the local one; and tensors made from nothing."""

from typing import Any

from torch import Tensor

from recipes.plan.execute.local_call import LocalCall


def reshaped(call: LocalCall, target: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """``reshape``, ``view``: to the local shape."""
    return x.reshape(call.output_shape(0))


def expanded(call: LocalCall, target: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """``expand``: to the local shape."""
    return x.expand(call.output_shape(0))


def made(call: LocalCall, target: Any, size: Any, *args: Any, **kwargs: Any) -> Tensor:
    """``full``, ``zeros``, ``ones``, ``empty``: of the local shape."""
    return target(call.output_shape(0), *args, **kwargs)


def made_like(call: LocalCall, target: Any, x: Tensor, size: Any, *args: Any, **kw: Any) -> Tensor:
    """``new_zeros``, ``new_full``, backwards that are told the input's sizes."""
    return target(x, call.output_shape(0), *args, **kw)


def counted(call: LocalCall, target: Any, *args: Any, **kwargs: Any) -> Tensor:
    """``arange``: all of it, of which the rank takes its run."""
    found = target(*args, **kwargs)
    (run,) = call.output_runs(0)
    return found if run.size == found.shape[0] else found[run.start : run.stop].clone()
