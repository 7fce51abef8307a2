"""One call of a backward of attention, as every implementation is handed it."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from blocks.attention._options import Options


class BackwardCall(NamedTuple):
    """Gradients of what the forward returned, its tensors, and where gradients of keys go.

    Packed, or with a leading batch dimension; each implementation says which.

    grad_output, grad_lse: of output and LSE; grad_lse is None when nothing depends on the LSE.
    query, key, value: [..., tokens, heads, head_dim], as the forward had them.
    output, lse: as the forward returned them.
    grad_key, grad_value: shaped as keys; written or added to, as the implementation is told.
    options: as the forward had them.
    """

    grad_output: Tensor
    grad_lse: Tensor | None
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    lse: Tensor
    grad_key: Tensor
    grad_value: Tensor
    options: Options

    def each(
        self,
        of_queries: Callable[[Tensor], Tensor],
        of_keys: Callable[[Tensor], Tensor] | None = None,
    ) -> "BackwardCall":
        """The call seen otherwise: ``of_queries`` of the tensors with a row a query, ``of_keys``
        (the same where not given) of those with a row a key.

        ``of_keys`` returns views, so that gradients of keys reach the memory of this call.
        """
        of_keys = of_keys or of_queries
        return BackwardCall(
            of_queries(self.grad_output),
            None if self.grad_lse is None else of_queries(self.grad_lse),
            of_queries(self.query),
            of_keys(self.key),
            of_keys(self.value),
            of_queries(self.output),
            of_queries(self.lse),
            of_keys(self.grad_key),
            of_keys(self.grad_value),
            self.options,
        )
