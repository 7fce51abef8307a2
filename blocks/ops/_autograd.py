"""Whether a call must stay inside what autograd and torch.compile can follow."""

import torch
from torch import Tensor


def must_trace(*tensors: Tensor | None) -> bool:
    """True when a gradient may be asked for, or torch.compile is tracing the call."""
    if torch.compiler.is_compiling():
        return True
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in tensors)
