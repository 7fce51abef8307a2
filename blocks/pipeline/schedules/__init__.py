"""Schedules by family: functions from sizes to a ``Schedule``. Need no torch."""

from collections.abc import Callable

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules.defer_weights import defer_weights
from blocks.pipeline.schedules.eager_1f1b import eager_1f1b
from blocks.pipeline.schedules.gpipe import gpipe
from blocks.pipeline.schedules.interleaved import interleaved
from blocks.pipeline.schedules.looped_bfs import looped_bfs
from blocks.pipeline.schedules.one_f_one_b import one_f_one_b
from blocks.pipeline.schedules.seq1f1b import seq1f1b
from blocks.pipeline.schedules.seq1f1b_interleaved import seq1f1b_interleaved
from blocks.pipeline.schedules.slimpipe import slimpipe
from blocks.pipeline.schedules.terapipe import terapipe
from blocks.pipeline.schedules.token_zero_bubble import token_zero_bubble
from blocks.pipeline.schedules.zb_h1 import zb_h1
from blocks.pipeline.schedules.zb_h2 import zb_h2
from blocks.pipeline.schedules.zb_v import zb_v

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "eager_1f1b": eager_1f1b,
    "gpipe": gpipe,
    "interleaved": interleaved,
    "looped_bfs": looped_bfs,
    "one_f_one_b": one_f_one_b,
    "seq1f1b": seq1f1b,
    "seq1f1b_interleaved": seq1f1b_interleaved,
    "slimpipe": slimpipe,
    "terapipe": terapipe,
    "token_zero_bubble": token_zero_bubble,
    "zb_h1": zb_h1,
    "zb_h2": zb_h2,
    "zb_v": zb_v,
}
"""Every family by name, all called ``(num_ranks, num_slices, *, num_chunks=1)``; ``zb_v`` has 2."""

MANY_CHUNKS = ("interleaved", "looped_bfs", "seq1f1b_interleaved", "slimpipe")
"""The families that take any number of chunks."""

__all__ = [
    "MANY_CHUNKS",
    "SCHEDULES",
    "defer_weights",
    "eager_1f1b",
    "gpipe",
    "interleaved",
    "looped_bfs",
    "one_f_one_b",
    "seq1f1b",
    "seq1f1b_interleaved",
    "slimpipe",
    "terapipe",
    "token_zero_bubble",
    "zb_h1",
    "zb_h2",
    "zb_v",
]
