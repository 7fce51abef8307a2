"""``TrainedDecoder``: the decoder of ``recipes.model`` with the loss it is trained by.

``recipes.model`` keeps query, key and value in one matrix, and the gate with the up-projection;
a device that holds a run of such a matrix's rows does not hold whole heads of all three. Here each
is a parameter of its own, so that every one can be cut by heads or along the inner width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks import ops
from blocks._checks import check
from recipes.model import Decoder, ModelConfig, batched_attend
from recipes.model.attend import Attend
from recipes.model.layers import Attention
from recipes.model.mlp import ACTIVATIONS, GatedMLP
from recipes.model.parts import Linear

IGNORE = -100
"""Label of a position without a loss."""


class SplitAttention(Attention):
    """``Attention`` whose query, key and value have a matrix each."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__(config, layer, dtype)
        del self.qkv
        hidden, bias = config.hidden_size, config.qkv_bias
        self.query, self.key, self.value = (
            Linear(hidden, heads * config.head_dim, bias, dtype) for heads in self.heads
        )

    def forward(
        self, x: Tensor, positions: Tensor, cos_sin: Tensor | None, attend: Attend
    ) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim))
            for project in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if cos_sin is not None:
            query, key = ops.apply_rope(query, key, positions, cos_sin)
        return self.out(attend(self.layer, query, key, value).flatten(1))


class SplitMLP(nn.Module):
    """``GatedMLP`` whose gate and up-projection have a matrix each."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate = Linear(hidden, inner, bias, dtype)
        self.up = Linear(hidden, inner, bias, dtype)
        self.down = Linear(inner, hidden, bias, dtype)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class TrainedDecoder(Decoder):
    """Rows of tokens and their labels in, the summed loss of the labels out.

    Parameters are named as in ``recipes.model.Decoder``, but for those of ``decoder_pieces``.
    """

    def __init__(self, config: ModelConfig) -> None:
        check(not config.num_experts, "num_experts", "0 for a planned decoder", config.num_experts)
        special = any(config.windows) or config.attention_softcap is not None
        hint = "planned attention is plain and causal"
        check(not special, "windows, attention_softcap", "none", config.windows, hint)
        super().__init__(config, device=torch.get_default_device())
        kept = self.embed.weight.dtype
        for number, layer in enumerate(self.layers):
            with torch.device(self.embed.weight.device):
                layer.attention = SplitAttention(config, number, kept)
                if isinstance(layer.mlp, GatedMLP):
                    layer.mlp = SplitMLP(config, kept)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """
        Args:
            inputs, labels: int64 [num_rows, seq_len]; a label of -100 has no loss.
        """
        scores = self.logits(self.hidden(inputs))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return F.cross_entropy(scores, labels.flatten(), ignore_index=IGNORE, reduction="sum")

    def hidden(self, inputs: Tensor) -> Tensor:
        """What the head reads, [num_rows * seq_len, hidden_size]."""
        num_rows, seq_len = inputs.shape
        positions = torch.arange(seq_len, device=inputs.device).repeat(num_rows)
        attend = batched_attend(self.config, seq_len)
        return super().forward(inputs.flatten(), positions, attend)

    def next_scores(self, inputs: Tensor) -> Tensor:
        """Scores of what follows each row, [num_rows, vocab_size]: what a prefill is for."""
        num_rows, seq_len = inputs.shape
        return self.logits(self.hidden(inputs).unflatten(0, (num_rows, seq_len))[:, -1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TrainedDecoder":
        """The table of positions stays float32 whatever the parameters become."""
        table: Any = self.cos_sin
        super()._apply(fn, recurse)
        moved: Any = self.cos_sin
        if moved is not None and moved.dtype != table.dtype:
            self.cos_sin = table.to(moved.device)
        return self
