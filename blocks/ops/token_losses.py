"""``TokenLosses``: what the cross entropies return beside the loss."""

from typing import NamedTuple

from torch import Tensor


class TokenLosses(NamedTuple):
    """A loss with what it is made of.

    loss: reduced; the only one gradients flow from.
    token_losses: [num_rows] float32; 0 where the label is ignored.
    lse: [num_rows] float32, log of the sum of exponentiated (capped) scores; 0 where ignored.
    """

    loss: Tensor
    token_losses: Tensor
    lse: Tensor
