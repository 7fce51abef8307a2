"""Softmax attention over packed and paged keys."""

from blocks.attention.cascade import (
    SharedPrefix,
    cascade_decode,
    cascade_decode_work,
    cascade_pays,
)
from blocks.attention.decode import paged_decode, paged_decode_work
from blocks.attention.extend import paged_extend, paged_extend_work
from blocks.attention.merge import merge_states, merge_states_work
from blocks.attention.mla import mla_decode, mla_decode_work
from blocks.attention.output import AttentionOutput
from blocks.attention.prefill import prefill, prefill_backward_work, prefill_work
from blocks.attention.slice import slice_attention, slice_attention_work
from blocks.attention.slice_backward import (
    slice_attention_backward,
    slice_attention_backward_work,
)
from blocks.attention.slice_prefix import SlicePrefix
from blocks.attention.tree import tree_decode, tree_decode_work, tree_mask_from_parents

__all__ = [
    "AttentionOutput",
    "SharedPrefix",
    "SlicePrefix",
    "cascade_decode",
    "cascade_decode_work",
    "cascade_pays",
    "merge_states",
    "merge_states_work",
    "mla_decode",
    "mla_decode_work",
    "paged_decode",
    "paged_decode_work",
    "paged_extend",
    "paged_extend_work",
    "prefill",
    "prefill_backward_work",
    "prefill_work",
    "slice_attention",
    "slice_attention_backward",
    "slice_attention_backward_work",
    "slice_attention_work",
    "tree_decode",
    "tree_decode_work",
    "tree_mask_from_parents",
]
