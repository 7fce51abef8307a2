"""Inputs of the row-wise operations at a chosen size; see ``benches.cases`` for attention's."""

import dataclasses

import torch
from torch import Tensor


def normal(
    *shape: int, device: torch.device, dtype: torch.dtype = torch.bfloat16, grad: bool = False
) -> Tensor:
    """Seeded random numbers."""
    generator = torch.Generator(device).manual_seed(shape[0] + len(shape))
    x = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    return x.requires_grad_(grad)


@dataclasses.dataclass
class NormCase:
    """Rows to norm; ``residual`` is added first where given, ``bias`` makes it a LayerNorm."""

    x: Tensor
    weight: Tensor
    residual: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-6

    @classmethod
    def random(
        cls,
        num_rows: int,
        hidden_size: int,
        *,
        device: torch.device,
        residual: bool = False,
        layer: bool = False,
        grad: bool = False,
    ) -> "NormCase":
        x = normal(num_rows, hidden_size, device=device, grad=grad)
        weight = normal(hidden_size, device=device, grad=grad)
        more = normal(num_rows, hidden_size, device=device).flip(0) if residual else None
        bias = normal(hidden_size, device=device).flip(0) if layer else None
        for tensor in (more, bias):
            if tensor is not None:
                tensor.requires_grad_(grad)
        return cls(x, weight, more, bias)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What gradients are asked of."""
        given = (self.x, self.weight, self.residual, self.bias)
        return tuple(t for t in given if t is not None)


@dataclasses.dataclass
class GatedCase:
    """Rows [num_rows, 2 * hidden]: gates, then what they multiply."""

    x: Tensor


@dataclasses.dataclass
class RopeCase:
    """Heads of packed tokens, and the table of cosines and sines."""

    query: Tensor
    key: Tensor
    positions: Tensor
    cos_sin: Tensor


@dataclasses.dataclass
class LossCase:
    """Logits, or hidden rows and the vocabulary's weight, and what should have come."""

    labels: Tensor
    logits: Tensor | None = None
    hidden: Tensor | None = None
    weight: Tensor | None = None


@dataclasses.dataclass
class SampleCase:
    """Logits to draw from under one set of rules for all rows."""

    logits: Tensor
    top_k: int = 50
    top_p: float = 0.9
    min_p: float = 0.02


@dataclasses.dataclass
class MlaCase:
    """Queries over a paged cache of latents; see ``blocks.attention.mla_decode``."""

    query: Tensor
    latent_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    lens: list[int]
    latent_dim: int
    scale: float

    @property
    def block_size(self) -> int:
        return self.latent_cache.shape[1]


@dataclasses.dataclass
class MoeCase:
    """Rows sorted by expert, where each expert's run begins and ends, weights [E, out, in]."""

    x: Tensor
    weights: Tensor
    offsets: Tensor
