"""The stages of a pipeline rank: how they are made, and what their parameters are."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from blocks.sharding import Cut, Group
from recipes.model import ModelConfig
from recipes.train.config import TrainConfig
from recipes.train.holding import Holding
from recipes.train.shares import Shares
from recipes.train.stage import EMBEDDING, TIED_HEAD, DecoderStage
from recipes.train.tensor_parallel_stage import TensorParallelStage


def make_stage(
    config: TrainConfig,
    model: ModelConfig,
    layers: Sequence[range],
    stage: int,
    tensor: Group | None,
) -> DecoderStage:
    """A stage on the run's device, with the weights the run begins with.

    Args:
        layers: of all stages.
        tensor: the tensor-parallel ranks that share each layer; None: none do.
    """
    options: dict[str, Any] = {"stage": stage, "num_stages": len(layers)}
    options |= {"dtype": getattr(torch, config.dtype), "compile": config.compile}
    if tensor is None:
        made = DecoderStage(model, layers[stage], **options)
    else:
        made = TensorParallelStage(model, layers[stage], tensor, **options)
    made.init(config.seed)
    return made.to(config.device)


def named_parameters(
    stages: Collection[DecoderStage],
) -> tuple[dict[str, nn.Parameter], frozenset[str]]:
    """Parameters by name, and the names of those whose home is another rank.

    A tied head goes by the embedding's name, and takes over its memory where that is here too.
    """
    found: dict[str, nn.Parameter] = {}
    for stage in stages:
        found.update(stage.owned())
    heads = [stage.head for stage in stages if stage.head and stage.tied]
    for head in heads:
        if EMBEDDING in found:
            head.weight.data = found[EMBEDDING].data  # one memory, two sums of gradients
        else:
            found[EMBEDDING] = head.weight
            return found, frozenset([EMBEDDING])
    return found, frozenset()


def holdings_of(
    stages: Collection[DecoderStage],
    parameters: Mapping[str, nn.Parameter],
    tensor: Group | None,
    shares: Shares | None,
) -> dict[str, Holding]:
    """Of the parameters that are parts of what their names stand for.

    Args:
        shares: of replicas that share the parameters among them.
    """
    cuts: dict[str, Cut] = {}
    for stage in stages:
        if isinstance(stage, TensorParallelStage):
            renamed = {TIED_HEAD: EMBEDDING} if stage.tied else {}
            cuts |= {renamed.get(name, name): cut for name, cut in stage.cuts.items()}
    rows, replicas = (shares.rows, shares.group) if shares else ({}, None)
    return {
        name: Holding(cuts.get(name), tensor, rows.get(name), replicas)
        for name in parameters
        if tensor is not None or name in rows
    }
