"""A cost model of GPT-3 layers on V100 nodes, to replay published token pipelines with.

Two numbers are fitted, to rows 4 and 5 of the table (13B) alone: the speed of large products and
the bandwidth between nodes. Everything else is stated:

* Memory moves 790 GB/s: copies reach 88 % of the data sheet's 900.
* A product is cut into tiles of 128 x 128 over 80 multiprocessors, whole waves of them, or takes
  as long as reading its operands and writing its result. Slices of a hundred tokens fill neither
  a wave nor the bandwidth of their weights: that is the saturation knee.
* Launches: no pass over a layer takes less than 1.45 ms however few its tokens (the paper's
  Figure 3: forward, 1 to 256 tokens at width 2048); the backward launches more from faster code
  and is given the same.
* Every slice adds its weight gradients to those of the slices before it: two reads and a write of
  the layer's gradients beside the products that make them.
* Attention keeps whole rows of scores, every query against every key, masked ones too. Bytes per
  score forward: product 2, mask 4, softmax to fp32 6, back to fp16 6, product 2: 20. Backward:
  products 8, casts 12, softmax 12, mask 4: 36.
* The slices of a sequence hand keys and values on through a cache of the whole length that is
  copied per slice and layer, and whose gradient is cleared and added to: 2 and 4 passes over it.
* The rest of a layer (norms, biases, activations, residuals) passes its kept activations,
  ``4 + 9/m`` times the hidden states, through memory three times; backward twice that.
* Operation parallel over ``m`` GPUs: two all-reduces of the hidden states forward and two
  backward, on NVLink rings of 130 GB/s with 30 us each.
* Between stages: hidden states once per direction, 0.1 ms and the fitted bandwidth (25 Gbit/s are
  3.1 GB/s) where the next stage is on another node, 40 GB/s inside one. A stage waits for its
  transfers, as the paper's own cost does; hops of both sorts count with their mean.
* Data parallel over ``D`` replicas: fp16 gradients of a node's 8 GPUs in a ring all-reduce over
  the network after the last backward, ``2 (D - 1) / D`` of their bytes.
* An iteration takes ``sum t + (P - 1) max t`` and the gradients' all-reduce. Embedding, head and
  optimizer are left out: the paper has no embedding or head, and the update is milliseconds.

The structure was chosen with the table at hand, so its match is no blind forecast; no number was
adjusted to any row but the two.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from benches.terapipe_paper import FITTED, SETTINGS, Setting
from blocks.pipeline.slicing import makespan_s

MEMORY_BYTES_PER_S = 790e9
LAUNCH_S = 1.45e-3
TILE, MULTIPROCESSORS = 128, 80
FORWARD_SCORE_BYTES, BACKWARD_SCORE_BYTES = 20, 36
ALL_REDUCE_BYTES_PER_S = 130e9
ALL_REDUCE_LATENCY_S = 30e-6
HOP_LATENCY_S = 0.1e-3
NVLINK_BYTES_PER_S = 40e9
GPUS_PER_NODE = 8


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What is fitted. By the data sheets 125e12 and 3.1e9 would be the most."""

    gemm_flops_per_s: float
    network_bytes_per_s: float

    def product_s(self, rows: Any, columns: Any, depth: Any) -> Any:
        """Seconds of a matrix product; numbers or arrays."""
        import numpy as np

        tiles = np.ceil(rows / TILE) * np.ceil(columns / TILE)
        waves = np.ceil(tiles / MULTIPROCESSORS)
        flops = waves * MULTIPROCESSORS * TILE * TILE * 2 * depth
        moved = 2 * (rows * columns + rows * depth + columns * depth)
        return np.maximum(flops / self.gemm_flops_per_s, moved / MEMORY_BYTES_PER_S)


class StageCost:
    """Seconds of a slice on one stage of a setting: forward, backward and both transfers."""

    takes_arrays = True

    def __init__(self, cluster: Cluster, setting: Setting) -> None:
        self.cluster = cluster
        self.setting = setting

    def __call__(self, num_tokens: Any, start: Any, num_rows: int = 1) -> Any:
        import numpy as np

        forward, backward = self.layer_s(num_tokens, start, num_rows)
        launched = np.maximum(forward, LAUNCH_S) + np.maximum(backward, LAUNCH_S)
        return launched * self.setting.layers_per_stage + 2 * self._hop_s(num_tokens * num_rows)

    def layer_s(self, num_tokens: Any, start: Any, num_rows: int = 1) -> tuple[Any, Any]:
        """Seconds the device is busy with one layer's forward and backward."""
        d, m = self.setting.model.hidden_size, self.setting.operation
        tokens = num_tokens * num_rows
        product_s = self.cluster.product_s
        matrices = ((d, 3 * d / m), (d / m, d), (d, 4 * d / m), (4 * d / m, d))
        forward = sum(product_s(tokens, out, into) for into, out in matrices)
        backward = sum(
            product_s(tokens, into, out) + product_s(into, out, tokens) for into, out in matrices
        )
        backward = backward + 3 * 24 * d * d / m / MEMORY_BYTES_PER_S

        scores = num_rows * num_tokens * (start + num_tokens) * d / m  # over all heads, times 128
        score_byte_s = scores / 128 / MEMORY_BYTES_PER_S
        products_s = 4 * scores / self.cluster.gemm_flops_per_s
        hidden_bytes = 2 * d * tokens
        rest = 3 * (4 + 9 / m) * hidden_bytes / MEMORY_BYTES_PER_S
        cache = 4 * self.setting.seq_len * num_rows * d / m / MEMORY_BYTES_PER_S
        ring = 2 * (m - 1) / m * hidden_bytes / ALL_REDUCE_BYTES_PER_S
        reduces = 2 * (ALL_REDUCE_LATENCY_S + ring) if m > 1 else 0.0
        forward = forward + FORWARD_SCORE_BYTES * score_byte_s + products_s
        backward = backward + BACKWARD_SCORE_BYTES * score_byte_s + 2 * products_s
        return forward + rest + 2 * cache + reduces, backward + 2 * rest + 4 * cache + reduces

    def _hop_s(self, tokens: Any) -> Any:
        hidden_bytes = 2 * self.setting.model.hidden_size * tokens
        outside = self.setting.operation / GPUS_PER_NODE  # share of hops that leave the node
        network = HOP_LATENCY_S + hidden_bytes / self.cluster.network_bytes_per_s
        return outside * network + (1 - outside) * hidden_bytes / NVLINK_BYTES_PER_S

    def all_reduce_s(self) -> float:
        """Seconds of the gradients' all-reduce over the replicas."""
        model, replicas = self.setting.model, self.setting.data
        per_gpu = 24 * model.hidden_size**2 * self.setting.layers_per_stage / self.setting.operation
        share = 2 * (replicas - 1) / replicas
        return share * GPUS_PER_NODE * per_gpu / self.cluster.network_bytes_per_s

    def iteration_s(self, lengths: Sequence[int]) -> float:
        """Seconds of an iteration whose sequences go one by one in slices of these lengths."""
        starts = [0, *itertools.accumulate(lengths)][:-1]
        pairs = zip(lengths, starts, strict=True)
        costs_s = [float(self(num_tokens, start)) for num_tokens, start in pairs]
        rows, stages = self.setting.rows_per_replica, self.setting.pipeline
        return makespan_s(costs_s, stages, rows) + self.all_reduce_s()


def fit_cluster(rounds: int = 10) -> Cluster:
    """The cluster whose times for the fitted rows, as published, are nearest in ratio.

    A grid around the best point so far, ever finer, from 72 % and 80 % of the data sheets.
    """
    fitted = [setting for setting in SETTINGS if setting.row in FITTED]
    best, width = (90e12, 2.5e9), 0.3
    for _ in range(rounds):
        grids = [[x * math.exp(width * k / 3) for k in range(-3, 4)] for x in best]
        best = min(itertools.product(*grids), key=lambda point: misfit(Cluster(*point), fitted))
        width *= 0.6
    return Cluster(*best)


def misfit(cluster: Cluster, settings: Sequence[Setting]) -> float:
    """Sum of squared logarithms of predicted over published seconds, without and with slices."""
    errors = [
        math.log(StageCost(cluster, setting).iteration_s(lengths) / published_s)
        for setting in settings
        for lengths, published_s in (
            ([setting.seq_len], setting.without_s),
            (setting.lengths, setting.with_s),
        )
    ]
    return sum(error * error for error in errors)
