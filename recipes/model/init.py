"""Random weights: the start of a training run, and of tests and benches without a download."""

import math

import torch

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
    shrink = 1 / math.sqrt(2 * decoder.config.num_layers)
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0 - decoder.config.norm_offset)
        else:
            writes_residual = ".out." in name or ".down" in name
            parameter.normal_(0.0, std * (shrink if writes_residual else 1.0), generator=generator)
