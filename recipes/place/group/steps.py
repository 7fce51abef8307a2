"""``Steps``: what a group computes, step by step."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

from blocks.sched import Batch
from blocks.sched.cluster_sim.generation import Load, load_of
from recipes.place.group.hosted import Hosted
from recipes.place.group.inbox import Inbox
from recipes.place.group.shelf import in_thread, why
from recipes.place.group.spec import GroupSpec
from recipes.place.group.state import GroupState, UnderWay
from recipes.place.group.step_log import Step, StepLog
from recipes.place.group.turns import who_may_send, whose_turn
from recipes.serve.outputs import Delta
from recipes.serve.parallel import ParallelRunner

log = logging.getLogger("recipes.place")


@dataclasses.dataclass(frozen=True, slots=True)
class InFlight:
    """Whose steps are in flight, and since when; replaced as a whole, as other threads read it.

    since_s: when the first of them became the first.
    sent: moments and loads, in order. before: of the last one that is through.
    """

    model: str = ""
    since_s: float = 0.0
    sent: tuple[tuple[float, Load], ...] = ()
    before: tuple[float, Load] | None = None


class Steps:
    """Takes steps of the models' engines in turns, and knows what is under way.

    Args:
        models: those that are hosted.
        inbox: where orders and events come; a wait for a step ends when something does.
        tell_deltas, tell_state: to the front door.

    num_steps: that were begun.
    """

    def __init__(
        self,
        spec: GroupSpec,
        models: Mapping[str, Hosted],
        inbox: Inbox,
        tell_deltas: Callable[[list[Delta]], object],
        tell_state: Callable[[], object],
    ) -> None:
        self.num_steps = 0
        self._spec, self._models, self._inbox = spec, models, inbox
        self._tell_deltas, self._tell_state = tell_deltas, tell_state
        self._in_flight = InFlight()
        self._log = StepLog(spec.step_log) if spec.step_log else None
        self._free_s: float | None = None  # since when, if it has not waited for orders since
        self._told = (0.0, 0.0)  # when a state was told last, and how long that took

    def take(self, patience_s: float | None) -> None:
        """Go on with a step, if there is anything to do: take one; or, where batches follow one
        another through stages, send one out or wait for one.

        Args:
            patience_s: longest to wait; None for no limit.
        """
        if not any(one.num_out for one in self._models.values()):
            self._in_flight = InFlight()  # it ended otherwise, maybe
        working = [one for one in self._models.values() if one.may_step]
        if not working:
            return
        if self._spec.depth == 1:
            self._step(whose_turn(working, self._spec.turns))
            return
        able, num_batches = who_may_send(working, self._spec.turns, self._spec.depth)
        if any(self._sends(one, num_batches) for one in able):
            return
        holder = next((one for one in working if one.num_out), None)
        if holder is not None and self._is_through(holder, patience_s):
            self._finish(holder)

    def waited(self) -> None:
        """There was nothing to do for a while."""
        self._free_s = None

    def told(self, state: GroupState) -> GroupState:
        """A state with what is under way just now; from any thread."""
        flight, now_s = self._in_flight, time.monotonic()
        if not flight.model:
            return state
        return dataclasses.replace(
            state,
            stepping=flight.model,
            step_s=now_s - flight.since_s,
            under_way=tuple(UnderWay(load, now_s - sent_s) for sent_s, load in flight.sent),
            before=UnderWay(flight.before[1], now_s - flight.before[0]) if flight.before else None,
        )

    def contain(self, hosted: Hosted) -> list[Delta]:
        """An engine's own fault ends all that it has."""
        log.exception("group %s: the engine of %s failed", self._spec.group, hosted.model)
        return hosted.abort("internal engine error")

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    # ---- one at a time ----

    def _step(self, hosted: Hosted) -> None:
        if self._starts_ranks(hosted):
            return
        self._count(hosted)
        began_s = time.monotonic() if self._free_s is None else self._free_s
        self._in_flight = InFlight(hosted.model, time.monotonic())
        load = None
        try:
            deltas = hosted.step(self._begun)
        except Exception:  # the engine contains what requests cause; this is its own fault
            deltas = self.contain(hosted)
        finally:
            if self._in_flight.sent:
                load = self._in_flight.sent[0][1]
            self._in_flight = InFlight()
        self._tell_deltas(deltas)
        self._free_s = time.monotonic()
        if self._log is not None and load is not None:
            self._log.add(Step(began_s, self._free_s - began_s, hosted.model, load))
        if not hosted.may_step:
            self._tell()

    def _count(self, hosted: Hosted) -> None:
        self.num_steps += 1
        hosted.turn = self.num_steps

    def _begun(self, hosted: Hosted, batch: Batch) -> None:
        """A step has been scheduled and is computed next; it is told of, for a share of the time
        that is larger where the step will be long.
        """
        load, now_s, flight = load_of(batch), time.monotonic(), self._in_flight
        since_s = flight.since_s if flight.sent else now_s
        self._in_flight = InFlight(
            hosted.model, since_s, (*flight.sent, (now_s, load)), flight.before
        )
        told_s, took_s = self._told
        if now_s - told_s >= (4 if load.num_prompt else 20) * took_s:
            self._tell()

    def _tell(self) -> None:
        now_s = time.monotonic()
        self._tell_state()
        self._told = (now_s, time.monotonic() - now_s)

    # ---- one behind the other ----

    def _sends(self, hosted: Hosted, num_batches: int) -> bool:
        """Send out a batch; False where the engine has none."""
        if not hosted.num_out and self._starts_ranks(hosted):
            return True
        num_out, flight = hosted.num_out, self._in_flight
        try:
            deltas = hosted.begin(self._begun, num_batches)
        except Exception:
            deltas = self.contain(hosted)
        is_sent = hosted.num_out > num_out
        if is_sent:
            self._count(hosted)
        else:  # it failed, or all that was under way is lost
            self._in_flight = flight if hosted.num_out else InFlight()
        self._tell_deltas(deltas)
        return is_sent or bool(deltas)

    def _is_through(self, holder: Hosted, patience_s: float | None) -> bool:
        """Wait for the first batch under way; False once something else is to be done."""
        assert holder.engine is not None
        runner = holder.engine.runner
        if not isinstance(runner, ParallelRunner):
            return True
        wait_s = self._spec.step_timeout_s if patience_s is None else patience_s
        with self._inbox.watched() as wake:
            return runner.wait(wait_s, [wake])

    def _finish(self, holder: Hosted) -> None:
        flight = self._in_flight
        try:
            deltas = holder.finish()
        except Exception:
            deltas = self.contain(holder)
        now_s = time.monotonic()
        left = flight.sent[len(flight.sent) - holder.num_out :]
        if flight.sent and left:
            self._in_flight = InFlight(flight.model, now_s, left, (now_s, flight.sent[0][1]))
        else:
            self._in_flight = InFlight()
        self._tell_deltas(deltas)
        if self._log is not None and flight.sent:
            sent_s, load = flight.sent[0]
            self._log.add(Step(sent_s, time.monotonic() - sent_s, holder.model, load))
        if not holder.may_step:
            self._tell()

    # ---- ranks that were lost ----

    def _starts_ranks(self, hosted: Hosted) -> bool:
        """Where a model's processes are gone, start others while other models are served."""
        assert hosted.engine is not None
        runner = hosted.engine.runner
        if not isinstance(runner, ParallelRunner) or runner.is_running:
            return False
        hosted.busy = True
        in_thread(lambda: self._start_again(hosted, runner), "restart")
        return True

    def _start_again(self, hosted: Hosted, runner: ParallelRunner) -> None:
        error = ""
        try:
            runner.start()
        except Exception as caught:
            log.error("group %s: model %s: %s", self._spec.group, hosted.model, caught)
            error = why(caught)
        self._inbox.put(lambda: self._started_again(hosted, error))

    def _started_again(self, hosted: Hosted, error: str) -> None:
        hosted.busy = False
        if error:
            self._tell_deltas(hosted.abort(error, lost=True))
