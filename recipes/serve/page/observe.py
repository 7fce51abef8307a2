"""``Observer``: tells ``RecentRequests`` what became of a stream."""

import time
from collections.abc import Callable

from recipes.serve.outputs import Delta
from recipes.serve.page.recent_requests import RecentRequests


class Observer:
    """One request from its submission to its last delta; give it to ``Stream.observe``.

    The time a token takes is the mean over the tokens after the first of every sample.

    Args:
        num_samples: sequences that answer it.
        started_s: when it came, on ``clock``.
        ttft_s, tpot_s: its limits; None for none.
    """

    def __init__(
        self,
        recent: RecentRequests,
        model: str,
        num_samples: int,
        started_s: float,
        *,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._recent, self._model = recent, model
        self._open = self._num_samples = num_samples
        self._started_s = started_s
        self._limits = ttft_s, tpot_s
        self._clock = clock
        self._first_s: dict[tuple[str, int], float] = {}
        self._after_s, self._after = 0.0, 0
        self._counts: dict[tuple[str, int], int] = {}
        self._failed = False

    def restart(self) -> None:
        """What has come so far is made anew; give it to ``Stream.on_restart``."""
        self._open, self._failed = self._num_samples, False
        self._first_s.clear()
        self._counts.clear()
        self._after_s, self._after = 0.0, 0

    def __call__(self, delta: Delta) -> None:
        """A delta has come."""
        now_s = self._clock()
        sample = delta.request_id, delta.index
        if delta.token_ids:
            self._first_s.setdefault(sample, now_s)
            self._counts[sample] = self._counts.get(sample, 0) + len(delta.token_ids)
        if delta.finish_reason is None:
            return
        self._open -= 1
        self._failed |= delta.finish_reason in ("error", "cancelled")
        if sample in self._first_s and self._counts[sample] > 1:
            self._after_s += now_s - self._first_s[sample]
            self._after += self._counts[sample] - 1
        if not self._open:
            self._end(now_s)

    def _end(self, now_s: float) -> None:
        ttft_limit_s, tpot_limit_s = self._limits
        limited = ttft_limit_s is not None or tpot_limit_s is not None
        if self._failed:
            self._recent.failed(self._model, limited=limited)
            return
        first_s = min(self._first_s.values(), default=now_s)  # now, where nothing was generated
        ttft_s = first_s - self._started_s
        tpot_s = self._after_s / self._after if self._after else None
        met = None
        if limited:
            met = ttft_limit_s is None or ttft_s <= ttft_limit_s
            met &= tpot_limit_s is None or tpot_s is None or tpot_s <= tpot_limit_s
        latency_s = now_s - self._started_s
        self._recent.answered(
            self._model, ttft_s=ttft_s, tpot_s=tpot_s, latency_s=latency_s, met=met
        )
