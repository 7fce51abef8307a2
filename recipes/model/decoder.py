"""The decoder: embeddings, layers, final norm and head, written against an ``attend`` callable.

Tokens of all sequences lie packed in one dimension; where a sequence ends is known only to
``attend``. One class serves inference and training: parameters are ordinary ``nn.Parameter``,
and the operations of ``blocks.ops`` choose a differentiable implementation when one is needed.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from blocks._checks import fail
from blocks.ops import rope_frequencies, rope_table
from recipes.model.attend import Attend
from recipes.model.config import ModelConfig
from recipes.model.layers import LAYERS
from recipes.model.parts import Linear, Table, make_norm


class Decoder(nn.Module):
    """A decoder-only transformer of any family.

    The parameters are allocated and not filled: ``init_weights`` or ``load_model`` does that.

    Args:
        config: the architecture.
        dtype: dtype of the parameters; default ``config.dtype``.
        device: where they live; ``"meta"`` allocates nothing.
        max_positions: longest sequence to be run, for the size of the rotary table; default
            ``config.max_positions``.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        max_positions: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        kept: torch.dtype = dtype or getattr(torch, config.dtype)
        with torch.device(device):
            width = config.embedding_dim or config.hidden_size
            self.embed = Table(config.vocab_size, width, kept)
            self.positions = None
            if config.rope is None:
                rows = config.max_positions + config.position_offset
                self.positions = Table(rows, config.hidden_size, kept)
            self.project_in = self.project_out = None
            if config.embedding_dim is not None:
                self.project_in = Linear(width, config.hidden_size, False, kept)
                self.project_out = Linear(config.hidden_size, width, False, kept)
            make_layer = LAYERS[config.norm_order]
            self.layers = nn.ModuleList(
                make_layer(config, i, kept) for i in range(config.num_layers)
            )
            self.final_norm = make_norm(config, config.hidden_size, kept)
            if not config.final_norm:
                self.final_norm = None
            self.head = None if config.tie_embeddings else Table(config.vocab_size, width, kept)
        limit = max_positions or config.max_positions
        self.register_buffer("cos_sin", rotary_table(config, limit, device), persistent=False)
        self._embedding_scale = None
        if config.embedding_scale is not None:  # rounded as the weights are
            self._embedding_scale = torch.tensor(config.embedding_scale, dtype=kept).item()

    def forward(
        self,
        token_ids: Int[Tensor, "num_tokens"],
        positions: Int[Tensor, "num_tokens"],
        attend: Attend,
    ) -> Float[Tensor, "num_tokens hidden_size"]:
        """Hidden state after the final norm, one row per token.

        Args:
            positions: position of each token in its own sequence, from 0.
            attend: attention over the tokens given here and whatever it has cached.

        Raises:
            ValueError: tokens that are not packed.
        """
        if token_ids.dim() != 1 or token_ids.shape != positions.shape:
            got = f"{list(token_ids.shape)} and {list(positions.shape)}"
            hint = "flatten a batch: where its sequences end is told to attend"
            raise fail("token_ids and positions", "two of one shape [num_tokens]", got, hint)
        x, residual = self._embed(token_ids, positions), None
        for layer in self.layers:
            x, residual = layer(x, residual, positions, self.cos_sin, attend)
        if self.final_norm is None:
            return x if residual is None else x + residual
        return self.final_norm(x) if residual is None else self.final_norm(x, residual)[0]

    def logits(
        self, hidden: Float[Tensor, "num_rows hidden_size"]
    ) -> Float[Tensor, "num_rows vocab_size"]:
        """Next-token scores of the rows given; pass only rows that are sampled from."""
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        head = self.embed if self.head is None else self.head
        scores = head.scores(hidden)
        cap = self.config.logit_softcap
        return scores if cap is None else torch.tanh(scores / cap) * cap

    def _embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        x = self.embed(token_ids)
        if self._embedding_scale is not None:
            x = x * self._embedding_scale
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None:
            x = x + self.positions(positions + self.config.position_offset)
        return x


def rotary_table(
    config: ModelConfig, num_positions: int, device: torch.device | str
) -> Tensor | None:
    """Cosines and sines of every position; None for families with learned positions."""
    if config.rope is None:
        return None
    frequencies = rope_frequencies(
        config.head_dim, theta=config.rope.theta, scaling=config.rope.scaling
    )
    return rope_table(frequencies, num_positions, device=device)
