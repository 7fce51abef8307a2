"""The small decoder that traced steps run, in two stages."""

import dataclasses

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from blocks.attention import SlicePrefix
from blocks.pipeline import Schedule, SliceContext, TensorSpec
from blocks.pipeline.schedules import seq1f1b

VOCAB = 512
NUM_RANKS = 2
CUTS = {"equal": (0, 4, 8, 12, 16), "falling": (0, 4, 7, 10, 12, 14, 15, 16)}
"""Where the slices begin, in sixteenths of the sequence. Falling lengths tell what length and what
prefix cost."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is run: steps whose sequences are cut in one way and another in turn."""

    width: int
    num_tokens: int
    layers_per_rank: int
    num_steps: int
    num_sequences: int = 1

    def bounds(self, cut: str) -> list[tuple[int, ...]]:
        return [tuple(self.num_tokens * at // 16 for at in CUTS[cut])] * self.num_sequences

    def schedule(self, cut: str) -> Schedule:
        return seq1f1b(NUM_RANKS, (len(CUTS[cut]) - 1,) * self.num_sequences)

    def data(self) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.num_sequences, self.num_tokens + 1)
        tokens = torch.randint(VOCAB, shape, generator=generator)
        return [{"tokens": row[:-1], "labels": row[1:]} for row in tokens]

    def wire(self, source: int, target: int, num_tokens: int) -> list[TensorSpec]:
        return [TensorSpec((num_tokens, self.width), torch.float32)]


SMALL = Setting(width=256, num_tokens=1024, layers_per_rank=2, num_steps=20)
LARGE = Setting(width=512, num_tokens=2048, layers_per_rank=2, num_steps=24)


class Layer(nn.Module):
    """Causal attention over the slices so far, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, context: SliceContext) -> Tensor:
        prefix = context.state.get(self)
        if prefix is None:
            length = len(context.data["tokens"])
            prefix = context.state[self] = SlicePrefix.empty(length, self.heads, 64, dtype=x.dtype)
        apart = "token (qkv head dim) -> qkv token head dim"
        query, key, value = rearrange(self.qkv(self.norms[0](x)), apart, qkv=3, head=self.heads)
        x = x + self.out(prefix.attend(query, key, value, context.start).flatten(1))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Stage(nn.Module):
    """A rank's layers; the first embeds, the last sums losses."""

    def __init__(self, setting: Setting, rank: int) -> None:
        super().__init__()
        width = setting.width
        self.embed = nn.Embedding(VOCAB, width) if rank == 0 else None
        self.layers = nn.ModuleList(Layer(width) for _ in range(setting.layers_per_rank))
        self.head = nn.Linear(width, VOCAB, bias=False) if rank == NUM_RANKS - 1 else None

    def forward(self, *inputs: Tensor, context: SliceContext) -> Tensor:
        rows = slice(context.start, context.stop)
        x = inputs[0] if self.embed is None else self.embed(context.data["tokens"][rows])
        for layer in self.layers:
            x = layer(x, context)
        if self.head is None:
            return x
        return F.cross_entropy(self.head(x), context.data["labels"][rows], reduction="sum")
