"""``DecoderStage``: consecutive layers of a decoder, for one place of a pipeline."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blocks.ops import linear_cross_entropy
from blocks.pipeline.ties import Tie
from recipes.model import Attend, Decoder, ModelConfig
from recipes.model.part import LayerStack
from recipes.model.parts import Table
from recipes.train.model import first_weights
from recipes.train.slice_attend import slice_attend
from recipes.train.working import WorkingCopies

EMBEDDING = "embed.weight"
TIED_HEAD = "head.weight"


def tied_weights(model: ModelConfig, num_stages: int) -> tuple[Tie, ...]:
    """The embedding and the head where they are one matrix in two stages."""
    last = num_stages - 1
    return ({0: EMBEDDING, last: TIED_HEAD},) if model.tie_embeddings and last else ()


class DecoderStage(nn.Module):
    """Layers [first, stop) of the decoder of ``config``, ready for ``blocks.pipeline``.

    The first stage embeds the tokens; the last has the final norm and the head and returns the
    summed loss. Parameters are named as in ``recipes.model.Decoder``, so that a name means one
    tensor whatever the stages. Between stages travels the residual stream, and the next stage takes
    it up as the norm inside one stage would have: any cut gives the same bits.

    A tied head is a parameter of its own with its own sum of gradients, ``head.weight``, that holds
    the embedding's values; it is not among ``owned``.

    Args:
        layers: the numbers of the layers; may be empty in a first or last stage.
        num_stages, stage: where in the pipeline this is.
        dtype: of forward and backward; parameters are float32 (float64 for float64).
        compile: compile the layers. Slices of a cut row attend outside of the graph.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: range,
        *,
        stage: int = 0,
        num_stages: int = 1,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.compiles = config, dtype, compile
        kept = torch.promote_types(dtype, torch.float32)
        whole = Decoder(config, dtype=kept)  # memory that nobody writes to is not taken
        is_first, is_last = stage == 0, stage == num_stages - 1
        self.embed = whole.embed if is_first else None
        self.positions = whole.positions if is_first else None
        self.project_in = whole.project_in if is_first else None
        self.layers = LayerStack({str(i): whole.layers[i] for i in layers})
        self.final_norm = whole.final_norm if is_last else None
        self.project_out = whole.project_out if is_last else None
        vocab_size, width = whole.embed.weight.shape
        self.head = whole.head or Table(vocab_size, width, kept) if is_last else None
        self.is_last = is_last
        # The norm behind a cut adds nothing to the stream: the same call, so the same bits. Behind
        # the embedding there is no sum, and none in post-norm layers.
        self._joins = layers.start > 0 and config.norm_order != "post"
        cos_sin: Any = whole.cos_sin
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        self._copies = WorkingCopies(dtype)
        self._run = torch.compile(self._layers, dynamic=False) if compile else self._layers

    def forward(self, *inputs: Tensor, context: Any) -> Tensor:
        """The residual stream behind the last layer here, [num_rows * slice_len, hidden_size]; at
        the last stage the summed loss of the slice."""
        tokens = context.data["inputs"][:, context.start : context.stop]
        positions = torch.arange(context.start, context.stop, device=tokens.device)
        positions = positions.repeat(tokens.shape[0])
        attend = slice_attend(self.config, context)
        if self.embed is not None:
            x, residual = self._embed(tokens.flatten(), positions), None
        else:
            (x,) = inputs
            residual = torch.zeros_like(x) if self._joins else None
        # A forward that is to be done again takes the operations of the one that is kept: those
        # without gradients round otherwise. A look at held-out text is free to take the fastest.
        record = torch.is_grad_enabled() or self.training
        run = self._run if record else self._layers  # a look costs no compilation either
        with torch.set_grad_enabled(record):
            x, residual = run(x, residual, positions, attend)
        if not torch.is_grad_enabled():
            x, residual = x.detach(), None if residual is None else residual.detach()
        if not self.is_last:
            return x if residual is None else x + residual
        labels = context.data["labels"][:, context.start : context.stop]
        return self._loss(x, residual, labels.flatten())

    @property
    def tied(self) -> bool:
        """Whether ``head.weight`` follows the embedding."""
        return self.head is not None and self.config.tie_embeddings

    def owned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Named parameters this stage is the home of: all but a tied head."""
        for name, parameter in self.named_parameters():
            if name != TIED_HEAD or not self.tied:
                yield name, parameter

    def init(self, seed: int) -> None:
        """The weights a run with that seed begins with."""
        for name, parameter in self.named_parameters():
            key = EMBEDDING if name == TIED_HEAD and self.tied else name
            first_weights(key, parameter, self.config, seed)

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        assert self.embed is not None
        x = self.embed(tokens)  # rows are rounded, not the table: their gradients add up wide
        if self.config.embedding_scale is not None:
            x = x * self.config.embedding_scale
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None:
            x = x + self.positions(positions + self.config.position_offset)
        return x.to(self.dtype)

    def _layers(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor | None]:
        arguments = (x, residual, positions, self.cos_sin, attend)
        return self._narrow(self.layers, arguments)

    def _loss(self, x: Tensor, residual: Tensor | None, labels: Tensor) -> Tensor:
        if self.final_norm is not None:
            x = self._narrow(self.final_norm, (x,) if residual is None else (x, residual))
            x = x if residual is None else x[0]
        elif residual is not None:
            x = x + residual
        if self.project_out is not None:
            x = self._narrow(self.project_out, (x,))
        return self._score(x, labels)

    def _score(self, x: Tensor, labels: Tensor) -> Tensor:
        assert self.head is not None
        cap = self.config.logit_softcap
        return linear_cross_entropy(x, self.head.weight, labels, reduction="sum", softcap=cap)

    def _narrow(self, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """``module`` on its parameters rounded to ``dtype``."""
        if self.dtype == torch.promote_types(self.dtype, torch.float32):
            return module(*arguments)
        if torch.compiler.is_compiling():
            weights = {name: t.to(self.dtype) for name, t in module.named_parameters()}
        else:
            weights = {name: self._copies.copy(t) for name, t in module.named_parameters()}
        return functional_call(module, weights, arguments)
