"""Next-token loss straight from hidden states, a chunk of rows at a time.

Scores over the vocabulary are the largest tensor of a small model's step. Here a chunk of them is
made, turned into its gradient and dropped while it is still in the processor's cache.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ROWS = 256


def linear_cross_entropy(
    hidden: Float[Tensor, "num_rows hidden_size"],
    weight: Float[Tensor, "vocab_size hidden_size"],
    labels: Int[Tensor, "num_rows"],
) -> Float[Tensor, ""]:
    """Summed cross entropy of ``hidden @ weight.T`` against labels, float32.

    Rows with a negative label count nothing and cost nothing. Products run in the dtype of hidden,
    the softmax in float32. Gradients of hidden and weight are made in the same pass; a second
    derivative is not.
    """
    rows = (labels >= 0).nonzero().squeeze(1)
    if len(rows) < len(labels):
        hidden, labels = hidden.index_select(0, rows), labels.index_select(0, rows)
    return _LinearCrossEntropy.apply(hidden, weight, labels)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels):
        wanted = any(ctx.needs_input_grad)
        dtype = hidden.dtype
        left, right = hidden, weight.to(dtype)
        grad_hidden = torch.empty_like(left) if wanted else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for x, y, grad in _chunks(left, labels, grad_hidden):
            scores = (x @ right.mT).float()  # [chunk, vocab_size]
            lse = scores.logsumexp(-1, keepdim=True)
            total += (lse - scores.gather(1, y[:, None])).sum()
            if grad is not None and grad_weight is not None:
                scores.sub_(lse).exp_()  # probabilities
                scores.scatter_add_(1, y[:, None], scores.new_full((len(y), 1), -1.0))
                slope = scores.to(dtype)
                torch.mm(slope, right, out=grad)
                grad_weight += slope.mT @ x
        if wanted:
            ctx.save_for_backward(grad_hidden, grad_weight)
            ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        of_hidden, of_weight = ctx.dtypes
        scaled = (grad_hidden.float() * grad).to(of_hidden)
        return scaled, (grad_weight * grad).to(of_weight), None


def _chunks(left: Tensor, labels: Tensor, grad: Tensor | None):
    for start in range(0, len(labels), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        yield left[rows], labels[rows], None if grad is None else grad[rows]
