"""A small transformer cut into stages, and the plain loop its gradients are compared with."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from blocks.attention import SlicePrefix
from blocks.pipeline import SliceContext

WIDTH, NUM_HEADS, VOCAB = 16, 2, 19


class Layer(nn.Module):
    """Attention over the tokens so far, then an MLP; dropout from the context's generator."""

    def __init__(self, window: int | None, dropout: float) -> None:
        super().__init__()
        self.window, self.dropout = window, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, context: SliceContext) -> Tensor:
        prefix = context.state.get(self)
        if prefix is None:
            sizes = (len(context.data["tokens"]), NUM_HEADS, WIDTH // NUM_HEADS)
            prefix = context.state[self] = SlicePrefix.empty(*sizes, dtype=x.dtype)
        apart = "token (qkv head dim) -> qkv token head dim"
        query, key, value = rearrange(self.qkv(self.norms[0](x)), apart, qkv=3, head=NUM_HEADS)
        attended = prefix.attend(
            query,
            key,
            value,
            context.start,
            cu_seqlens=context.data.get("cu_seqlens"),
            window=self.window,
        )
        x = x + self._drop(self.out(attended.flatten(1)), context)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))

    def _drop(self, x: Tensor, context: SliceContext) -> Tensor:
        if not self.dropout:
            return x
        drawn = torch.rand(x.shape, generator=context.generator, dtype=x.dtype)
        return x * (drawn >= self.dropout) / (1 - self.dropout)


class Stage(nn.Module):
    """Some layers; the first stage embeds, the last one sums losses."""

    def __init__(self, layers: Sequence[nn.Module], embed: nn.Module | None, head: bool) -> None:
        super().__init__()
        self.layers, self.embed = nn.ModuleList(layers), embed
        self.head = nn.Linear(WIDTH, VOCAB, bias=False) if head else None

    def forward(self, *inputs: Tensor, context: SliceContext) -> Tensor:
        rows = slice(context.start, context.stop)
        if self.embed is not None:
            x = self.embed(context.data["tokens"][rows])
        else:
            x, *skipped = reversed(inputs)  # the nearest stage is the main input
            for other in skipped:
                x = x + 0.5 * other
        for layer in self.layers:
            x = layer(x, context)
        if self.head is None:
            return x
        return F.cross_entropy(self.head(x), context.data["labels"][rows], reduction="sum")


def make_stages(
    sizes: Sequence[int],
    dtype: torch.dtype,
    *,
    tied: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
) -> list[Stage]:
    """Stages of so many layers each; the same weights however the layers are dealt out.

    tied: embedding and head start out equal; who trains them must sum their gradients.
    window: of every second layer.
    """
    torch.manual_seed(5)
    count = sum(sizes)
    layers = [Layer(window if i % 2 else None, dropout) for i in range(count)]
    embed, head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
    bounds = [0, *itertools.accumulate(sizes)]
    stages = [
        Stage(layers[a:b], embed if i == 0 else None, i == len(sizes) - 1)
        for i, (a, b) in enumerate(itertools.pairwise(bounds))
    ]
    assert stages[-1].head is not None
    stages[-1].head.load_state_dict((embed if tied else head).state_dict())
    return [stage.to(dtype) for stage in stages]


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Data of a step and where its sequences are cut."""

    data: list[Mapping[str, Tensor]]
    bounds: list[tuple[int, ...]]

    @property
    def num_slices(self) -> tuple[int, ...]:
        return tuple(len(found) - 1 for found in self.bounds)


def make_sequences(bounds: Sequence[Sequence[int]], *, packed: bool = False) -> Sequences:
    """Random tokens; packed: in two documents that do not see each other, the second of which
    begins inside a slice."""
    generator = torch.Generator().manual_seed(7)
    data = []
    for found in bounds:
        length = found[-1]
        tokens = torch.randint(VOCAB, (length + 1,), generator=generator)
        sequence = {"tokens": tokens[:-1], "labels": tokens[1:]}
        if packed:
            middle = length // 2 + 1
            sequence["cu_seqlens"] = torch.tensor([0, middle, length], dtype=torch.int32)
        data.append(sequence)
    return Sequences(data, [tuple(found) for found in bounds])


def plain_step(
    stages: Sequence[nn.Module],
    sequences: Sequences,
    *,
    loss_scale: float = 1.0,
    edges: Sequence[tuple[int, int]] = (),
    seed: int = 0,
    step: int = 0,
) -> dict[tuple[int, int], Tensor]:
    """Forward and backward of the same slices in one process by autograd alone; returns losses.

    Inputs are views, so that what a stage sends back is summed before it meets other stages'.
    """
    edges = edges or [(stage, stage + 1) for stage in range(len(stages) - 1)]
    losses = {}
    for q, (data, bounds) in enumerate(zip(sequences.data, sequences.bounds, strict=True)):
        states: list[dict] = [{} for _ in stages]
        for s, (start, stop) in enumerate(itertools.pairwise(bounds)):
            outputs: list[tuple[Tensor, ...]] = []
            for i, stage in enumerate(stages):
                key = (seed, step, q, s, i)
                context = SliceContext(q, s, start, stop, data, states[i], key)
                inputs = [t.view_as(t) for a, b in sorted(edges) if b == i for t in outputs[a]]
                found = stage(*inputs, context=context)
                outputs.append((found,) if isinstance(found, Tensor) else found)
            (losses[q, s],) = outputs[-1]
        for s in reversed(range(len(bounds) - 1)):
            (losses[q, s] * loss_scale).backward()
    return {key: loss.detach() for key, loss in losses.items()}


def take_gradients(stages: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Gradients by a name that does not depend on how layers are dealt out; clears them."""
    found, layer = {}, 0
    for stage in stages:
        assert isinstance(stage, Stage)
        named = dict(stage.named_parameters())
        for name, parameter in named.items():
            parts = name.split(".")
            if parts[0] == "layers":
                parts[1] = str(layer + int(parts[1]))
            assert parameter.grad is not None, name
            found[".".join(parts)] = parameter.grad
            parameter.grad = None
        layer += len(stage.layers)
    return found


def assert_same_bits(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    differ = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not differ, f"gradients of {differ} differ"
