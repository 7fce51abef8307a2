"""The module whose output is the loss alone."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from blocks._checks import fail

WRAP = "give the module its labels and let it return its loss (`trace` takes loss= too)"


class LossModule(nn.Module):
    """A module and what makes its output a loss.

    Parameters keep their names behind the prefix ``module.``.
    """

    PREFIX = "module."

    def __init__(self, module: nn.Module, loss: Callable[[Any], Tensor] | None) -> None:
        super().__init__()
        self.module = module
        self._loss = loss or loss_of

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = self._loss(self.module(*args, **kwargs))
        if not (isinstance(loss, Tensor) and loss.dim() == 0 and loss.is_floating_point()):
            got = f"{tuple(loss.shape)} {loss.dtype}" if isinstance(loss, Tensor) else type(loss)
            raise fail("loss", "a floating point scalar tensor", got, WRAP)
        return loss


def loss_of(output: Any) -> Tensor:
    """The loss in a module's output: the output itself, its ``loss``, or the first of a tuple.

    Raises:
        ValueError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(found, Tensor):
        return found
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise fail(
        "output of the module", "a loss: a scalar tensor, or a record or dictionary with `loss`",
        type(output).__name__, WRAP,
    )  # fmt: skip
