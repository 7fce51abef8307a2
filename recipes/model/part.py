"""``DecoderPart``: the consecutive layers of a decoder that one stage of a pipeline runs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from recipes.model.attend import Attend
from recipes.model.config import ModelConfig
from recipes.model.decoder import Decoder


class LayerStack(nn.ModuleDict):
    """Decoder layers by their number, one after another."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        cos_sin: Tensor | None,
        attend: Attend,
    ) -> tuple[Tensor, Tensor | None]:
        for layer in self.values():
            x, residual = layer(x, residual, positions, cos_sin, attend)
        return x, residual


class DecoderPart(Decoder):
    """Some layers of a decoder; the first stage embeds, the last has the final norm and the head.

    Parameters are named as in the whole decoder. Between stages travels the residual stream, and
    the next stage takes it up as the norm inside one stage would have: any cut gives the same bits.
    Where embedding and head are one matrix in two stages, the last has it as ``head.weight``.

    Args:
        layers: their numbers.
        stage, num_stages: where in the pipeline this is.
        options: of the ``Decoder``.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: range,
        *,
        stage: int = 0,
        num_stages: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(config, **options)
        self.stack = layers
        self.is_first, self.is_last = stage == 0, stage == num_stages - 1
        self.layers = LayerStack({str(i): self.layers[i] for i in layers})  # type: ignore
        if self.is_last and not self.is_first and self.head is None:
            self.head = self.embed
        if not self.is_first:
            del self.embed
            self.positions = self.project_in = None
        if not self.is_last:
            self.final_norm = self.project_out = self.head = None
        # Behind the embedding no sum is open, and none in post-norm layers.
        self._joins = not self.is_first and config.norm_order != "post"

    def forward(  # type: ignore[override]
        self, token_ids: Tensor, positions: Tensor, attend: Attend, stream: Tensor | None = None
    ) -> Tensor:
        """The residual stream behind the last layer here; at the last stage the hidden state.

        Args:
            stream: what the stage before this one returned; None at the first.
        """
        if stream is None:
            x, residual = self._embed(token_ids, positions), None
        else:
            x, residual = stream, torch.zeros_like(stream) if self._joins else None
        x, residual = self.layers(x, residual, positions, self.cos_sin, attend)
        if not self.is_last:
            return x if residual is None else x + residual
        if self.final_norm is None:
            return x if residual is None else x + residual
        return self.final_norm(x) if residual is None else self.final_norm(x, residual)[0]

    def homes(self, name: str) -> Iterator[str]:
        """Under which names a parameter of the whole decoder is here; none, one or two."""
        here = dict(self.named_parameters())
        tied = self.config.tie_embeddings and name == "embed.weight"
        for known in (name, "head.weight") if tied else (name,):
            if known in here:
                yield known
