"""Host side of the kernel that merges states."""

import torch
from torch import Tensor

from blocks._launch import launch
from blocks.attention import _tiles
from blocks.attention.output import AttentionOutput


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
