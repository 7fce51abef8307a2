"""One engine of a simulated group: the scheduler that serves also decides here."""

import collections
from collections.abc import Callable

from blocks.sched.batch import Batch
from blocks.sched.cluster_sim.generation.settings import AllocatorFactory, EngineSettings
from blocks.sched.cluster_sim.generation.standing import Standing, standing
from blocks.sched.cluster_sim.generation.step_time import StepTime, load_of
from blocks.sched.request import Request, Sequence
from blocks.sched.scheduler import Scheduler


class Engine:
    """A model's engine in a group: ``Scheduler`` on a simulated clock, and what was seen of it.

    live: sequences that are not finished, by index of their request.
    in_flight: the batches that are on their way, at most ``num_lanes``, in order.
    sent_s: when each of them was sent.
    begun_s, free_s: when the last of them has begun, and when it is through.
    told_s: when by its profile each of them should be, as far as anybody outside can tell.
    last_step_s: for how long the last step kept its neighbours waiting; by its profile, until it is
        known.
    turn: number of the last step in the group that was this engine's.
    """

    def __init__(
        self,
        model: int,
        step_time: StepTime,
        settings: EngineSettings,
        num_blocks: int,
        make_allocator: AllocatorFactory,
        clock: Callable[[], float],
    ) -> None:
        self.model = model
        self.step_time = step_time
        self.settings = settings
        self.num_lanes = settings.lanes(step_time.num_stages)
        self.allocator = make_allocator(num_blocks, settings.block_size)
        self.scheduler = Scheduler(
            self.allocator,
            token_budget=settings.token_budget,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=settings.max_model_len,
            clock=clock,
            max_in_flight=self.num_lanes,
        )
        self.live: dict[int, Sequence] = {}
        self.in_flight: collections.deque[Batch] = collections.deque()
        self.sent_s: collections.deque[float] = collections.deque()
        self.begun_s = self.free_s = 0.0
        self.told_s: collections.deque[float] = collections.deque()
        self.last_step_s = 0.0
        self.turn = 0
        self._num_finished, self._output_sum = 0, 0

    def add(self, request: int, prompt_len: int, output_len: int) -> None:
        """Queue a request.

        Raises:
            Unservable: it does not fit into the cache or the model's context.
        """
        # its index as token: no two requests share a prefix, whatever the allocator
        asked = Request(
            request_id=str(request), prompt_tokens=[request] * prompt_len, max_tokens=output_len
        )
        self.live[request] = self.scheduler.add(asked)

    def may_begin(self, num_lanes: int) -> bool:
        """Whether there may be something to do, and one more batch on its way."""
        return len(self.in_flight) < num_lanes and self.scheduler.has_work()

    def begin(self, num_lanes: int) -> tuple[float, ...]:
        """Schedule the next step; seconds of each stage, none where there is nothing to do."""
        batch = self.scheduler.schedule(num_lanes)
        if not batch.entries:
            return ()
        self.in_flight.append(batch)
        stage_s = self.step_time(load_of(batch))
        self.last_step_s = self.settings.holds_s(stage_s)
        return stage_s

    def end(self) -> tuple[list[int], list[int]]:
        """The first step is through; requests that gained a token, and those that are over."""
        batch = self.in_flight.popleft()
        self.sent_s.popleft()
        self.told_s.popleft()
        gained, over = [], []
        drawn = [[0] * entry.num_samples for entry in batch.entries]
        for sequence, _, reason in self.scheduler.update(batch, drawn):
            request = int(sequence.request.request_id)
            gained.append(request)
            if reason is not None:
                over.append(request)
                del self.live[request]
                self._num_finished += 1
                self._output_sum += sequence.num_output
        return gained, over

    def stands(self) -> Standing:
        """What stands here, for whoever must guess when a request would be answered."""
        mean = self._output_sum / self._num_finished if self._num_finished else 1.0
        return standing(
            self.live.values(),
            block_size=self.settings.block_size,
            num_free_blocks=self.allocator.num_free_blocks,
            expected_output=mean,
        )
