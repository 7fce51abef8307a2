"""``RoutedEngine``: one model of the cluster, for the endpoints an engine that takes jobs."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence

from blocks.sched import QueueFull
from recipes.place.fleet import Ask, Desk, LiveGroup, Nowhere, Part, Refusal, Slo
from recipes.place.fleet.desk import NO_ROOM
from recipes.place.fleet.keeper import Keeper
from recipes.place.front.errors import not_in_time, not_loaded, not_loaded_yet
from recipes.place.front.metrics import FrontMetrics
from recipes.place.group import GroupLost, NotHosted, WorkLost
from recipes.serve import errors
from recipes.serve.errors import ApiError
from recipes.serve.job import Job
from recipes.serve.outputs import Delta
from recipes.serve.stream import Stream, StreamCancelled

log = logging.getLogger("recipes.place")
MOST_TRIES = 4
"""Groups that a request is handed to before one has accepted it."""
ids = itertools.count()


class RoutedEngine:
    """Hands jobs to the group with the shortest queue; has a model loaded that is nowhere; sends
    jobs elsewhere, once, whose group is lost before anybody has read of them.

    Args:
        model: whose engine it seems to be.
        slo: limits of the jobs.
        load_wait_s: longest wait for a model that must be loaded first.
    """

    def __init__(
        self,
        model: str,
        desk: Desk,
        keeper: Keeper,
        metrics: FrontMetrics,
        slo: Slo,
        load_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._desk, self._keeper, self._metrics = model, desk, keeper, metrics
        self._slo, self._load_wait_s, self._clock = slo, load_wait_s, clock
        self._again: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Groups are started by their keeper."""

    async def stop(self) -> None:
        """Give up what is to be sent again."""
        for task in self._again:
            task.cancel()

    @property
    def is_alive(self) -> bool:
        return self._keeper.is_alive

    @property
    def num_in_flight(self) -> int:
        seats = self._desk.router.seats()
        return sum(seat.num_live for seat in seats if seat.model == self._model)

    def seconds_stalled(self) -> float:
        """Groups that stand still are ended by their handles."""
        return 0.0

    def new_id(self) -> str:
        return f"r{next(ids)}"

    async def submit(self, jobs: Sequence[Job]) -> Stream:
        """Queue jobs on a group: all of them or none.

        Raises:
            ApiError: 429, predicted to be late, or 503, the model cannot be loaded in time.
            QueueFull: the group's queue is full.
            ValueError: a job that can never run, in the words of the engine.
        """
        started = time.perf_counter()
        ask = Ask(
            self._model,
            tuple(Part(job.request_id, len(job.prompt_tokens), job.params.n) for job in jobs),
            max(len(job.prompt_tokens) + (job.params.max_tokens or 1) for job in jobs),
            self._slo,
        )
        try:
            stream = await self._hand_over(ask, jobs, None)
        except asyncio.CancelledError:
            self._metrics.cancelled(ask.model, "client_left")
            raise
        stream.started = min(stream.started, started)  # waits for a model count
        stream.observe(self._gained)
        stream.on_restart(lambda: self._desk.restart(ask))
        stream.on_cancel(lambda cause: self._left(ask, cause))
        return stream

    async def _hand_over(self, ask: Ask, jobs: Sequence[Job], stream: Stream | None) -> Stream:
        """To a group that accepts it, waiting for the model if need be."""
        began_s = self._clock()
        for _ in range(MOST_TRIES):
            group = await self._group_for(ask, began_s, stream)
            assert ask.arrival is not None
            waited_s = self._clock() - ask.arrival.at_s
            try:
                return await group.handle.submit(
                    ask.model,
                    jobs,
                    ttft_s=max(0.0, self._slo.ttft_s - waited_s),  # also of one sent again, which
                    tpot_s=self._slo.tpot_s,  # is not refused, and no less urgent
                    stream=stream,
                    on_lost=lambda stream, lost: self._lost(ask, stream, lost),
                )
            except (GroupLost, NotHosted) as error:  # before it was accepted: as if never asked
                log.info("%s: %s", ask.parts[0].part_id, error)
                self._desk.forget(ask)
                ask.tried.pop()
                self._keeper.notice(group.devices)
                await self._keeper.changed(0.05)
            except BaseException:
                self._desk.forget(ask)
                raise
        raise self._unavailable(ask, "its groups were lost one after another")

    async def _group_for(self, ask: Ask, began_s: float, stream: Stream | None) -> LiveGroup:
        while True:
            if stream is not None and stream.cancelled is not None:
                raise StreamCancelled(stream.cancelled)
            found = self._desk.ask(ask, self._clock())
            if isinstance(found, Refusal):
                self._refused(ask, 429)
                raise not_in_time(found, ask.slo)
            if not isinstance(found, Nowhere):
                return self._desk.fleet.groups[found.seat.devices]
            self._keeper.wake()
            waited_s = self._clock() - began_s
            left_s = self._load_wait_s - waited_s
            in_time_s = ask.slo.ttft_s * self._desk.router.slack - waited_s
            if found.wait_s is not None and found.wait_s > min(left_s, in_time_s):
                self._refused(ask, 429)
                raise not_loaded_yet(ask.model, found.wait_s)
            broken = not found.coming and found.why != NO_ROOM  # room may come, as others end
            if left_s <= 0 or broken:
                raise self._unavailable(ask, found.why or "it is not loaded yet")
            await self._keeper.changed(min(left_s, 0.5))

    def _unavailable(self, ask: Ask, why: str) -> ApiError:
        self._refused(ask, 503)
        return not_loaded(ask.model, why, self._load_wait_s)

    def _refused(self, ask: Ask, status: int) -> None:
        """Counted, but for one that was taken before and fails now."""
        if not ask.tried:
            self._metrics.refused(ask.model, status, limited=_limited(self._slo))

    def _gained(self, delta: Delta) -> None:
        over = delta.finish_reason is not None
        self._desk.gain(delta.request_id, delta.index, len(delta.token_ids), over=over)

    def _left(self, ask: Ask, cause: str) -> None:
        self._desk.forget(ask)
        self._metrics.cancelled(ask.model, cause)

    # --- what computes it is lost ---------------------------------------------------------------

    def _lost(self, ask: Ask, stream: Stream, lost: WorkLost) -> None:
        """Called by the group's handle, before anybody has read of the stream."""
        self._keeper.notice(ask.tried[-1].devices)
        if not self._desk.lost(ask):
            self._give_up(stream, _gone(lost))
            return
        task = asyncio.create_task(self._send_again(ask, stream, lost))
        self._again.add(task)
        task.add_done_callback(self._again.discard)

    async def _send_again(self, ask: Ask, stream: Stream, lost: WorkLost) -> None:
        self._metrics.sent_again(ask.model)
        try:
            await self._hand_over(ask, stream.jobs, stream)
        except StreamCancelled:
            pass
        except (ApiError, QueueFull, ValueError) as error:
            log.info("%s: %s, and then: %s", ask.parts[0].part_id, lost, error)
            self._give_up(stream, _gone(lost, error))
        except BaseException:
            stream.fail(_gone(lost))
            raise

    def _give_up(self, stream: Stream, error: ApiError) -> None:
        self._metrics.recent.failed(self._model, limited=_limited(self._slo))
        stream.fail(error)


def _gone(lost: WorkLost, then: Exception | None = None) -> ApiError:
    """503: its group is gone, and why there is no other."""
    found = errors.lost(f"the group that had the request was lost ({lost})")
    if then is not None:
        found.message += f", and then: {then}"
    if isinstance(then, ApiError):
        found.headers |= then.headers
    return found


def _limited(slo: Slo) -> bool:
    return slo != Slo()
