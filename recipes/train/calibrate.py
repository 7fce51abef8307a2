"""What token slices cost on this machine, measured with the stages a run would have."""

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from blocks._checks import check
from blocks.pipeline import (
    CostSurface,
    Sample,
    SliceContext,
    fit_cost,
    uniform_slices,
)
from blocks.pipeline.held_bytes import HeldBytes
from recipes.model import ModelConfig
from recipes.train.config import TrainConfig
from recipes.train.data import document_bounds
from recipes.train.layout import stage_layers
from recipes.train.stage import DecoderStage

CUTS = (1, 2, 4, 8)
"""Numbers of even slices a row is cut into for measuring: lengths and prefixes of all sizes."""
MIN_SLICE = 8


def calibrate(
    config: TrainConfig,
    model: ModelConfig,
    *,
    rounds: int = 5,
    clock: Callable[[], float] = time.thread_time,
) -> list[CostSurface]:
    """A surface for every pipeline rank: the sum of its stages, in CPU seconds of this thread.

    Forwards and whole backwards are timed, the least of ``rounds``, after a round that warms up;
    weight gradients count as part of the backward. As in a pipeline each follows one of the other
    kind, which leaves little in the caches that it could use. ``config`` is resolved.

    Raises:
        ValueError: rows too short to be cut in two.
    """
    length, least = config.context_len, 2 * MIN_SLICE
    check(length >= least, "context_len", f"at least {least} tokens to measure slices", length)
    return [_surface(config, model, own, rounds, clock) for own in _ranks(config, model)]


def held_bytes(config: TrainConfig, model: ModelConfig) -> list[float]:
    """For every pipeline rank the bytes a token holds from its forward to its backward, counted
    in the forward of a microbatch of whole rows. ``config`` is resolved."""
    bounds, data = (0, config.context_len), _data(config, model)
    found = []
    for stages in _ranks(config, model):
        with HeldBytes() as held:
            counts = []
            kept = []
            for _ in range(2):  # the first also makes what all slices share, as masks
                kept += [_forward(stage, data, bounds, 0, {}, model) for stage in stages]
                counts.append(held.count())
        found.append((counts[1] - counts[0]) / config.context_len)
    return found


def _ranks(config: TrainConfig, model: ModelConfig) -> list[list[DecoderStage]]:
    """The stages of every pipeline rank."""
    layers = stage_layers(config)
    stages = [
        DecoderStage(
            model,
            part,
            stage=number,
            num_stages=len(layers),
            dtype=getattr(torch, config.dtype),
        )
        for number, part in enumerate(layers)
    ]
    for stage in stages:
        stage.init(config.seed)
    # Chunk k of rank p is stage k * pp + p, except in a V, where the even split hardly differs.
    return [stages[rank :: config.pp] for rank in range(config.pp)]


def _data(config: TrainConfig, model: ModelConfig) -> dict[str, Tensor]:
    """A microbatch of random tokens."""
    shape = (config.microbatch or 1, config.context_len)
    generator = torch.Generator().manual_seed(config.seed)
    data = {
        name: torch.randint(model.vocab_size, shape, generator=generator)
        for name in ("inputs", "labels")
    }
    if config.document_mask:
        data["documents"] = document_bounds(data["inputs"], model.eos_token_ids[0])
    return data


def _surface(
    config: TrainConfig,
    model: ModelConfig,
    stages: Sequence[DecoderStage],
    rounds: int,
    clock: Callable[[], float],
) -> CostSurface:
    length, rows = config.context_len, config.microbatch or 1
    data, samples = _data(config, model), []
    for count in (count for count in CUTS if length // count >= MIN_SLICE):
        bounds = uniform_slices(length, count)
        found = [list(_one_round(stages, data, bounds, model, clock)) for _ in range(rounds + 1)][
            1:
        ]
        for piece in range(count):
            forward, backward = (min(times[piece][side] for times in found) for side in (0, 1))
            start, stop = bounds[piece : piece + 2]
            sent = rows * (stop - start) * model.hidden_size * stages[0].dtype.itemsize
            samples.append(Sample(stop - start, start, forward, backward, 0.0, sent))
    return fit_cost(samples)


def _one_round(
    stages: Sequence[DecoderStage],
    data: dict[str, Tensor],
    bounds: Sequence[int],
    model: ModelConfig,
    clock: Callable[[], float],
) -> Iterator[tuple[float, float]]:
    """Seconds of forward and backward of every slice, all stages together."""
    count = len(bounds) - 1
    forward, backward = [0.0] * count, [0.0] * count
    for stage in stages:
        state: dict = {}
        held: list[Tensor] = []
        for piece in range(count):
            short = _forward(stage, data, (0, MIN_SLICE), 0, {}, model)
            short.backward(torch.ones_like(short))
            started = clock()
            held.append(_forward(stage, data, bounds, piece, state, model))
            forward[piece] += clock() - started
        for piece in reversed(range(count)):
            _forward(stage, data, (0, MIN_SLICE), 0, {}, model)
            out = held[piece]
            grad = torch.ones_like(out)
            started = clock()
            out.backward(grad)
            backward[piece] += clock() - started
        stage.zero_grad(set_to_none=True)
    yield from zip(forward, backward, strict=True)


def _forward(
    stage: DecoderStage,
    data: dict[str, Tensor],
    bounds: Sequence[int],
    piece: int,
    state: dict,
    model: ModelConfig,
) -> Tensor:
    context = SliceContext(0, piece, bounds[piece], bounds[piece + 1], data, state)
    shape = (data["inputs"].shape[0] * context.num_tokens, model.hidden_size)
    inputs = ()
    if stage.embed is None:
        inputs = (torch.ones(shape, dtype=stage.dtype, requires_grad=True),)
    return stage(*inputs, context=context)
