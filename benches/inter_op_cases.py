"""A decoder as a table of stages under a stated cost model, for timings of the partition.

A layer of a Llama-70B shape takes its FLOPs at half of 312 TFLOP/s, less as it is spread over more
devices, and most over several hosts; its head is worth 0.6 layers. Nothing here was measured on a
device: the figures made with it are simulated.
"""

import numpy as np

from blocks.pipeline import LayerSums, StageCost, submeshes

PARAMS = 0.85e9
TOKENS = 4096 * 1024
HIDDEN = 8192
CAP_BYTES = 80e9
TIGHT_BYTES = 14e9
"""Less than the best plan without a cap takes."""

OPTIONS = ("keep", "recompute")


def decoder(num_layers: int, num_hosts: int, num_microbatches: int) -> LayerSums:
    """Layers on hosts of eight devices; a global batch of 1,024 sequences of 4,096 tokens."""
    shapes = submeshes(num_hosts, 8, only_powers_of_two=True)
    tokens = TOKENS / num_microbatches

    def layer(extra: float, size: int, recompute: bool) -> StageCost:
        spread = 1 + 0.02 * np.log2(size) + (0.05 * size / 8 if size > 8 else 0)
        seconds = 2 * PARAMS * (1 + extra) * tokens / (size * 312e12 * 0.5 / spread)
        kept = 34 * HIDDEN * tokens / size
        return StageCost(
            forward_s=seconds,
            backward_s=seconds * (1 + recompute),
            weight_s=seconds,
            once_s=4 * PARAMS / size / 25e9,
            fixed_bytes=16 * PARAMS * (1 + extra) / size,
            microbatch_bytes=kept / 17 if recompute else kept,
            transient_bytes=kept if recompute else kept / 4,
        )

    def row(extra: float) -> list[list[StageCost]]:
        return [[layer(extra, shape.size, bool(o)) for o in (0, 1)] for shape in shapes]

    inner = row(0.0)
    every = np.array([row(0.05), *[inner] * (num_layers - 2), row(0.6)])
    layers = {name: every[..., index] for index, name in enumerate(StageCost._fields)}
    return LayerSums(shapes, OPTIONS, layers, transfer=lambda layer, a, b: (1e-3, 1e-3))
