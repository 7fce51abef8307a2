"""One dial: the depth of the model decides its width, its batch, its rate and its horizon."""

import dataclasses
import math

from blocks._checks import check
from recipes.train.config import TrainConfig

WIDTH_PER_LAYER = 64
HEAD_DIM = 64
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, of the parameters outside the embedding
BASE_DEPTH, BASE_RATE, BASE_TOKENS = 4, 6e-3, 2048  # the bundled model's, from which all is scaled
MAX_CONTEXT = 2048


def dial(config: TrainConfig, depth: int) -> TrainConfig:
    """``config`` with the sizes that suit ``depth`` layers; text and layout stay as they are.

    Width grows with depth, tokens a step with the square of it, the rate falls with the root of the
    width and rises with the root of the batch; the run sees 20 tokens a parameter.

    >>> (config := dial(TrainConfig(), 8)).hidden_size, config.batch_size * config.context_len
    (512, 8192)

    Reference: Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, table 3.
    """
    check(0 < depth <= 256, "depth", "a number of layers from 1 to 256", depth)
    width = WIDTH_PER_LAYER * depth
    heads = width // HEAD_DIM
    inner = -(-8 * width // (3 * 16)) * 16
    context = min(MAX_CONTEXT, max(256, 2 ** round(math.log2(128 * depth))))
    growth = depth / BASE_DEPTH
    tokens = BASE_TOKENS * 4 ** round(math.log2(growth))
    rows = max(1, int(tokens // context))
    kv_heads = max(d for d in range(1, max(1, heads // 2) + 1) if heads % d == 0)
    query_and_kv = width * (heads + 2 * kv_heads) * HEAD_DIM
    parameters = depth * (query_and_kv + width * width + 3 * width * inner)
    steps = max(1, TOKENS_PER_PARAMETER * parameters // (rows * context))
    return dataclasses.replace(
        config,
        num_layers=depth,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=inner,
        context_len=context,
        batch_size=rows,
        learning_rate=float(f"{BASE_RATE * math.sqrt(rows * context / tokens_at(growth)):.2g}"),
        num_steps=steps,
        warmup_steps=max(1, min(1000, steps // 50)),
    )


def tokens_at(growth: float) -> float:
    """Tokens a step at which the base rate is right for a model so much wider."""
    return BASE_TOKENS * growth
