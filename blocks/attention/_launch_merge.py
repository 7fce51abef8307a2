"""Host side of ``merge_states``: memory for the states of a call, and the kernel's launch."""

import torch
from torch import Tensor

from blocks._launch import launch
from blocks.attention import _tiles
from blocks.attention._call import Call
from blocks.attention.output import AttentionOutput


def empty_states(call: Call, num_states: int, wide: bool) -> tuple[Tensor, Tensor]:
    """Memory for states to be merged; in float32 where ``wide``, else as the query."""
    query, shape = call.query, (num_states, *call.query.shape[:2])
    dtype = torch.float32 if wide else query.dtype
    outputs = torch.empty((*shape, call.value.shape[-1]), dtype=dtype, device=query.device)
    return outputs, torch.empty(shape, dtype=torch.float32, device=query.device)


def merge_splits(outputs: Tensor, lses: Tensor, dtype: torch.dtype) -> AttentionOutput:
    """``merge``, without a launch where the only split is in ``dtype`` already."""
    if outputs.dtype == dtype and outputs.shape[0] == 1:
        return AttentionOutput(outputs[0], lses[0])
    return merge(outputs, lses, dtype)


def merge(outputs: Tensor, lses: Tensor, dtype: torch.dtype) -> AttentionOutput:
    """``merge_states``, with the result in ``dtype``."""
    from blocks.attention._triton.merge import _merge_states_kernel

    num_states, num_tokens, num_heads, head_dim = outputs.shape
    output = torch.empty((num_tokens, num_heads, head_dim), dtype=dtype, device=outputs.device)
    lse = torch.empty((num_tokens, num_heads), dtype=torch.float32, device=outputs.device)
    num_rows = num_tokens * num_heads
    if num_rows:
        launch(
            _merge_states_kernel,
            (num_rows,),
            (outputs.contiguous(), lses.contiguous(), output, lse),
            (num_states, num_rows),
            {
                "HEAD_DIM": head_dim,
                "TILE_D": _tiles.power_of_two(head_dim),
                "TILE_S": _tiles.merge_states(head_dim),
            },
            num_warps=1 if head_dim <= 64 else 2,
            num_stages=2,
        )
    return AttentionOutput(output, lse)
