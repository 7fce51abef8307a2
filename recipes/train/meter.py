"""How well the machine is used: operations a step takes, what a processor can do, memory."""

import functools
import resource
import sys
import time

import torch

from blocks.attention import prefill_backward_work, prefill_work
from blocks.ops import linear_cross_entropy_work, linear_work
from recipes.model import Decoder, ModelConfig
from recipes.model.parts import Linear

PROBE_SIZE = 768


def step_flops(config: ModelConfig, num_rows: int, seq_len: int) -> int:
    """Operations of forward and backward over ``num_rows`` rows, as the operations declare them.

    A layer's products count three times (forward, gradients of input and of weight); attention
    counts the pairs a causal window shows, whatever documents hide of them; nothing is counted
    twice for being recomputed.
    """
    model, num_tokens = Decoder(config, device="meta"), num_rows * seq_len
    linears = [module for module in model.layers.modules() if isinstance(module, Linear)]
    shapes = [linear.weight.shape for linear in linears]
    flops = sum(3 * linear_work(num_tokens, cols, rows, 2).flops for rows, cols in shapes)
    lens = [seq_len] * num_rows
    for layer in range(config.num_layers):
        for work in (prefill_work, prefill_backward_work):
            flops += work(
                lens,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                itemsize=2,
                window=config.attention(layer).window,
            ).flops
    width = config.embedding_dim or config.hidden_size
    return flops + linear_cross_entropy_work(num_tokens, width, config.vocab_size, 2).flops


@functools.cache
def measured_peak(device: str, dtype: torch.dtype, num_threads: int) -> float:
    """Operations a second of a square matrix product here and now, the best of a few.

    Args:
        num_threads: torch's, so that another number is another measurement.
    """
    size = 8192 if device == "cuda" else PROBE_SIZE
    matrix = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        _finish(device)
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        _finish(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def peak_memory_bytes(device: str) -> int:
    """Most memory held so far: allocated on an accelerator, resident on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
