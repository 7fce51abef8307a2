"""``Doubles``: modules that compute parts of their work in float32 whatever they are made of, in
float64, so that plans can be told from rounding."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Doubles(TorchFunctionMode):
    """Whoever asks for float32 gets float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(_wide(one) for one in args)
        return func(*args, **{name: _wide(one) for name, one in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
