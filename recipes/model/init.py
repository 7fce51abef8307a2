"""Random weights: the start of a training run, and of tests and benches without a download."""

import math

import torch
from torch import Tensor

from recipes.model.config import ModelConfig
from recipes.model.decoder import Decoder


@torch.no_grad()
def init_weights(
    decoder: Decoder, generator: torch.Generator | None = None, std: float = 0.02
) -> None:
    """Fill every parameter in place; the same generator state gives the same weights.

    Matrices are normal with ``std``, those that write into the residual stream (attention output
    and ``down``) with ``std / sqrt(2 num_layers)``; norm weights start at one in effect, biases
    at zero.

    Reference: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, 2.3.
    """
    for name, parameter in decoder.named_parameters():
        init_parameter(name, parameter, decoder.config, generator, std)


@torch.no_grad()
def init_parameter(
    name: str,
    parameter: Tensor,
    config: ModelConfig,
    generator: torch.Generator | None = None,
    std: float = 0.02,
) -> None:
    """What ``init_weights`` does to the parameter of that name."""
    if name.endswith("bias"):
        parameter.zero_()
    elif parameter.ndim == 1:
        parameter.fill_(1.0 - config.norm_offset)
    else:
        writes_residual = ".out." in name or ".down" in name
        shrink = 1 / math.sqrt(2 * config.num_layers) if writes_residual else 1.0
        parameter.normal_(0.0, std * shrink, generator=generator)
