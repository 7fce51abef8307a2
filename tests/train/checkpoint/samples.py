"""Small checkpoints to save, and whether two are the same."""

import torch
from torch import Tensor

from recipes.train.checkpoint import Checkpoint, StoredCheckpoint


def make(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model.weight": torch.randn(7, 5, generator=generator),
        "model.half": torch.randn(3, generator=generator).bfloat16(),
        "optimizer.weight.step": torch.tensor(float(step)),
        "nothing": torch.empty(0, 4),
        "rng": torch.randint(0, 255, (16,), generator=generator, dtype=torch.uint8),
    }
    return Checkpoint(step, tensors, {"losses": [step + 0.1], "note": "é"})


def same(found: Checkpoint | StoredCheckpoint | None, wanted: Checkpoint) -> bool:
    """Bit for bit."""
    return (
        found is not None
        and (found.step, found.state) == (wanted.step, wanted.state)
        and found.tensors.keys() == wanted.tensors.keys()
        and all(equal(found.tensors[name], tensor) for name, tensor in wanted.tensors.items())
    )


def equal(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
        if one.ndim
        else torch.equal(one, other)
    )
