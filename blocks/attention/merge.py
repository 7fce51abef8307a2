"""``merge_states``: attention over a union of key sets from attention over each."""

import torch
from jaxtyping import Float
from torch import Tensor

from blocks._checks import check_dtype, check_same_device, check_shape, expects_tensors
from blocks._work import Work
from blocks.attention import _cpu, _launch_merge, reference
from blocks.attention._layout import REFERENCE_DTYPES, choose
from blocks.attention.output import AttentionOutput

HAS = ("native", "triton", "reference")


@expects_tensors
def merge_states(
    outputs: Float[Tensor, "num_states num_tokens num_heads head_dim"],
    lses: Float[Tensor, "num_states num_tokens num_heads"],
    *,
    impl: str | None = None,
) -> AttentionOutput:
    """Combine attention over disjoint sets of keys into attention over their union.

    Each state weighs ``exp(lse)``; the order of states does not matter and merging may be nested.
    A state with an LSE of -inf saw no key: its output is not read and may hold anything.

    Args:
        outputs: normalised output of each state.
        lses: natural logarithm of each state's softmax denominator, float32.
        impl: ``reference``, ``native`` or ``triton``.

    Returns:
        Output in the dtype of ``outputs`` and the LSE of the union, float32.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit together.

    Example:
        >>> states = torch.ones(2, 1, 1, 8), torch.zeros(2, 1, 1)
        >>> merge_states(*states).lse.exp()
        tensor([[2.]])

    Reference:
        Ye et al., "FlashInfer", 2025, section 2.2 (attention states and their composition).
    """
    check_shape("outputs", outputs, ("num_states", "num_tokens", "num_heads", "head_dim"))
    check_shape("lses", lses, tuple(outputs.shape[:3]), "one LSE a state, token and head")
    check_dtype("outputs", outputs, REFERENCE_DTYPES)
    check_dtype("lses", lses, (torch.float32,), "LSEs are kept in float32")
    check_same_device(outputs=outputs, lses=lses)
    if outputs.shape[0] == 0:
        raise ValueError("outputs: expected at least one state, got 0; there is nothing to merge")
    how = choose(impl, HAS, outputs, lses)
    if how == "triton":
        return _launch_merge.merge(outputs, lses, outputs.dtype)
    if how == "native":
        return _cpu.merge(outputs, lses, outputs.dtype)
    return reference.merge_states(outputs, lses)


def merge_states_work(
    num_states: int, num_tokens: int, num_heads: int, head_dim: int, itemsize: int
) -> Work:
    """Work of one ``merge_states``: every state read once, the union written once."""
    rows = num_tokens * num_heads
    return Work(
        flops=2 * num_states * rows * head_dim,
        bytes=(num_states + 1) * rows * (head_dim * itemsize + 4),
    )
