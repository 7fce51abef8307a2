"""Which requests join the waiting queue, and with which rank."""

from collections.abc import Callable

from blocks._checks import check
from blocks.sched.admission import QueueBound, QueueFull, Unservable, check_servable
from blocks.sched.counters import Counters
from blocks.sched.holdings import Holdings
from blocks.sched.policy import Policy
from blocks.sched.request import Request
from blocks.sched.roster import Roster


class Intake:
    """Refuses what could never finish or is one too many, and ranks the rest.

    Ranks are given by the time of joining, which never goes back even where the clock does.
    """

    __slots__ = (
        "_bound",
        "_clock",
        "_counters",
        "_holdings",
        "_last_joined",
        "_max_model_len",
        "_policy",
        "_roster",
    )

    def __init__(
        self,
        roster: Roster,
        holdings: Holdings,
        counters: Counters,
        *,
        policy: Policy,
        clock: Callable[[], float],
        bound: QueueBound,
        max_model_len: int,
    ) -> None:
        self._roster = roster
        self._holdings = holdings
        self._counters = counters
        self._policy = policy
        self._clock = clock
        self._bound = bound
        self._max_model_len = max_model_len
        self._last_joined = float("-inf")

    def rank(self, request: Request) -> tuple[object, float]:
        """The policy's key of an acceptable request, and when it arrived.

        Raises:
            Unservable: it could never fit into the model's context or the cache.
            QueueFull: too much is waiting; nothing has changed.
            ValueError: a request of this id is live.
        """
        check(
            request.request_id not in self._roster.requests,
            "request_id",
            "one that is not in use",
            repr(request.request_id),
        )
        self._check_acceptable(request)
        now = self._clock()
        self._last_joined = max(self._last_joined, now)
        rank = self._policy(request, self._last_joined)
        check(rank == rank, "policy key", "something ordered", rank, "mend the policy function")
        return rank, now if request.arrival is None else request.arrival

    def _check_acceptable(self, request: Request) -> None:
        roster = self._roster
        try:
            check_servable(
                request,
                max_model_len=self._max_model_len,
                num_usable_blocks=self._holdings.num_usable_blocks,
                block_size=self._holdings.block_size,
            )
            self._bound.check(request, len(roster.waiting), roster.num_waiting_tokens)
        except Unservable:
            self._counters.num_unservable += 1
            raise
        except QueueFull:
            self._counters.num_queue_full += 1
            raise
