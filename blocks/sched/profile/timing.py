"""``Timing``: what one configuration of a model takes, in seconds and bytes."""

import bisect
import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

from blocks._checks import check, check_count, fail, is_number
from blocks.sched.profile.configuration import Configuration
from blocks.sched.profile.interpolate import interpolate


class BatchTime(NamedTuple):
    """One pass over a batch of single-pass requests; ``stage_s`` holds seconds a stage."""

    batch_size: int
    stage_s: tuple[float, ...]


class PrefillTime(NamedTuple):
    """One pass over the ``num_tokens`` tokens of a prompt."""

    num_tokens: int
    stage_s: tuple[float, ...]


class DecodeTime(NamedTuple):
    """One token for each of ``batch_size`` sequences of ``context_len`` tokens."""

    batch_size: int
    context_len: int
    stage_s: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Timing:
    """One configuration of a model: seconds of every stage, bytes of every device.

    configuration: the one timed.
    weight_bytes: of each stage, on one of its devices.
    activation_bytes: beside weights on a device, while the largest batch runs.
    batches: single-pass times, by rising batch size.
    kv_bytes_per_token: keys and values of a token, on the device that holds most of them.
    prefill, decode: autoregressive times, by rising tokens, and by batch size and context; the
        decode table holds every batch size with every context.
    """

    configuration: Configuration
    weight_bytes: tuple[int, ...]
    activation_bytes: int = 0
    batches: tuple[BatchTime, ...] = ()
    kv_bytes_per_token: int = 0
    prefill: tuple[PrefillTime, ...] = ()
    decode: tuple[DecodeTime, ...] = ()

    def __post_init__(self) -> None:
        name = f"configuration {self.configuration.checked()}"
        pp = self.configuration.pp
        check(len(self.weight_bytes) == pp, f"weight_bytes of {name}", f"{pp}", self.weight_bytes)
        for what, count in (
            *(("weight_bytes", each) for each in self.weight_bytes),
            ("activation_bytes", self.activation_bytes),
            ("kv_bytes_per_token", self.kv_bytes_per_token),
        ):
            check_count(f"{what} of {name}", count, least=0)
        check(
            bool(self.batches or self.decode), name, "times of batches or of decode steps", "none"
        )
        both = bool(self.prefill) == bool(self.decode)
        check(both, name, "prefill and decode times, or neither", "only one of them")
        for rows in (self.batches, self.prefill, self.decode):
            for row in rows:
                for field, count in zip(row._fields, row[:-1], strict=False):
                    check_count(f"{field} of {name}", count)
                ok = all(is_number(second) for second in row.stage_s)
                check(ok, name, "stage times in seconds", row.stage_s)
            keys = [row[:-1] for row in rows]
            check(keys == sorted(set(keys)), name, "rows in rising order, each once", keys)
            for row in rows:
                check(len(row.stage_s) == pp, name, f"{pp} stage times a row", len(row.stage_s))
                ok = all(0 < second < float("inf") for second in row.stage_s)
                check(ok, name, "stage times above 0, in seconds", row.stage_s)
        grid = [(b, c) for b in self.decode_batches for c in self.decode_contexts]
        check(grid == [row[:2] for row in self.decode], name, "decode rows: a full grid", len(grid))

    # --- single-pass ----------------------------------------------------------------------------

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that were timed."""
        return tuple(row.batch_size for row in self.batches)

    def stage_s(self, batch_size: int = 1) -> tuple[float, ...]:
        """Seconds of each stage.

        Raises:
            ValueError: a batch size that was not timed.
        """
        for row in self.batches:
            if row.batch_size == batch_size:
                return row.stage_s
        known = f"one of {self.batch_sizes} in configuration {self.configuration}"
        raise fail("batch_size", known, batch_size)

    def latency_s(self, batch_size: int = 1) -> float:
        """Seconds of a lone batch through all stages."""
        return sum(self.stage_s(batch_size))

    def requests_per_s(self, batch_size: int = 1) -> float:
        """Most requests a second: one batch per time of the slowest stage."""
        return batch_size / max(self.stage_s(batch_size))

    # --- autoregressive -------------------------------------------------------------------------

    @functools.cached_property
    def decode_batches(self) -> tuple[int, ...]:
        """Batch sizes of the decode table."""
        return tuple(sorted({row.batch_size for row in self.decode}))

    @functools.cached_property
    def decode_contexts(self) -> tuple[int, ...]:
        """Context lengths of the decode table."""
        return tuple(sorted({row.context_len for row in self.decode}))

    def prefill_s(self, num_tokens: float | int) -> tuple[float, ...]:
        """Seconds of each stage for a prompt of ``num_tokens``, linear between the rows.

        Below the first row its time holds (a short pass reads the weights all the same); above the
        last one the slope of the last two goes on, or the last row's time per token.
        """
        return interpolate(*self._prefill_rows, num_tokens)

    def decode_s(self, batch_size: float | int, context_len: float | int) -> tuple[float, ...]:
        """Seconds of each stage for one decode step, linear between the rows either way."""
        batches, contexts = self.decode_batches, self.decode_contexts
        low = max(0, min(bisect.bisect_right(batches, batch_size) - 1, len(batches) - 2))
        near = self._decode_rows[low : low + 2]
        rows = [interpolate(contexts, times, context_len) for times in near]
        return interpolate(batches[low : low + 2], rows, batch_size)

    @functools.cached_property
    def _prefill_rows(self) -> tuple[Sequence[int], Sequence[tuple[float, ...]]]:
        return [row.num_tokens for row in self.prefill], [row.stage_s for row in self.prefill]

    @functools.cached_property
    def _decode_rows(self) -> Sequence[Sequence[tuple[float, ...]]]:
        """One list of stage times over the contexts for each batch size."""
        width = len(self.decode_contexts)
        starts = range(0, len(self.decode), width)
        return [[row.stage_s for row in self.decode[at : at + width]] for at in starts]

    # --- memory ---------------------------------------------------------------------------------

    def device_bytes(self, kv_tokens: int = 0) -> int:
        """Bytes on the fullest device: the largest stage, activations, room for ``kv_tokens``."""
        kv_bytes = kv_tokens * self.kv_bytes_per_token
        return max(self.weight_bytes) + self.activation_bytes + kv_bytes
