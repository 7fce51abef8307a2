"""What attention returns when the caller wants to merge it with something else."""

from typing import NamedTuple

from torch import Tensor


class AttentionOutput(NamedTuple):
    """Attention over some keys, with what is needed to merge it with attention over others.

    output: [num_tokens, num_heads, head_dim] in the query's dtype; zeros where no key is visible.
    lse: [num_tokens, num_heads] float32, natural logarithm of the softmax denominator (sinks
        included); -inf where no key is visible.
    """

    output: Tensor
    lse: Tensor
