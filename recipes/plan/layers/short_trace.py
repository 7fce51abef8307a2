"""``short_trace``: the graph of a deep model with a few of its blocks, and how many are missing.

A plan needs no more: layers are kept once for each kind, whatever the depth.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from blocks.sharding import OpGraph
from recipes.plan.trace import Untraceable, trace
from recipes.plan.trace.depth import find_run, shorten
from recipes.plan.trace.fake_module import fake_module
from recipes.plan.trace.joint_graph import new_fake_mode
from recipes.plan.trace.repeated_blocks import find_block_lists

_LOG = logging.getLogger(__name__)


def short_trace(
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    optimizer: str,
    gradient_dtype: torch.dtype | None = None,
    loss: Callable[[Any], Any] | None = None,
) -> tuple[OpGraph, int]:
    """The step of a model, and the number of equal blocks that were left out of it.

    None are where blocks do not repeat in a single run, or where code asks how many there are.

    Args:
        module: one, or a function that makes it.
        optimizer, gradient_dtype, loss: see ``trace``.
    """
    named: dict[str, Any] = {"optimizer": optimizer, "gradient_dtype": gradient_dtype, "loss": loss}
    fake: nn.Module = fake_module(module, new_fake_mode())
    runs = [run for one in find_block_lists(fake) if (run := find_run(one)) is not None]
    if len(runs) == 1 and runs[0].period == 1:
        try:
            shorten(fake, runs[0])
            short = trace(fake, args, kwargs, **named, whole=True)
            return short.graph, runs[0].num_blocks_left_out
        except Untraceable:
            raise
        except Exception as error:  # code that counts its layers can fail in any way
            _LOG.info("every layer is traced: %s", error)
    return trace(module, args, kwargs, **named).graph, 0
