"""The learning rate of a step."""

import math

from recipes.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then down to ``min_lr_share`` of the peak at the last step.

    ``cosine`` falls all the way along half a cosine, ``linear`` along a line; ``wsd`` stays at the
    peak and falls along a line over the last ``decay_share`` of the steps.

    Reference: Loshchilov and Hutter 2017 (cosine); Hu et al. 2024, MiniCPM, section 4 (WSD).
    """
    peak, warmup = config.learning_rate, min(config.warmup_steps, config.num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    floor = config.min_lr_share
    return peak * (floor + (1 - floor) * _share(step, warmup, config))


def _share(step: int, warmup: int, config: TrainConfig) -> float:
    """What is left of the way from the peak to the floor, from 1 to 0."""
    progress = min(1.0, (step - warmup) / max(1, config.num_steps - 1 - warmup))
    if config.rate_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.rate_schedule == "linear":
        return 1 - progress
    decay = max(1, round(config.num_steps * config.decay_share))
    return min(1.0, max(0, config.num_steps - 1 - step) / decay)
