"""The tiny families as cases that run plans."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recipes.plan.families import families, family
from recipes.plan.trace import trace
from recipes.plan.trace.loss_module import loss_of
from tests.plan.double import Doubles
from tests.plan.execute_cases import Batch, Case

TINY = tuple(name for name in families() if name.endswith(":tiny"))


def family_case(
    name: str,
    batch_size: int = 4,
    seq_len: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """A tiny family, its dropouts off; all of it in float64, or as it is made."""
    torch.manual_seed(0)
    made = family(name)
    module = made.make().to(dtype)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0

    def batch(seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return made.inputs(batch_size, seq_len, generator=generator, dtype=dtype)

    def wide() -> contextlib.AbstractContextManager[object]:
        """The decoder's own operations are as wide as their inputs."""
        as_made = dtype != torch.float64 or name.startswith("decoder:")
        return contextlib.nullcontext() if as_made else Doubles()

    def call(m: nn.Module, b: Mapping[str, Tensor]) -> Tensor:
        with wide():
            return loss_of(m(**b))

    with wide():
        traced = trace(module, (), batch(0))
    return Case(module, traced, batch, call)
