"""One engine of a simulated group: the scheduler that serves also decides here."""

from collections.abc import Callable

from blocks.sched.batch import Batch
from blocks.sched.cluster_sim.generation.settings import AllocatorFactory, EngineSettings
from blocks.sched.cluster_sim.generation.step_time import Load, StepTime, load_of
from blocks.sched.request import Request, Sequence, State
from blocks.sched.scheduler import Scheduler


class Engine:
    """A model's engine in a group: ``Scheduler`` on a simulated clock, and what was seen of it.

    live: sequences that are not finished, by index of their request.
    in_flight: the step that is under way.
    free_s: when that step is through.
    last_step_s: what the last step took of its slowest stage: what it costs its neighbours.
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
        self.allocator = make_allocator(num_blocks, settings.block_size)
        self.scheduler = Scheduler(
            self.allocator,
            token_budget=settings.token_budget,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=settings.max_model_len,
            clock=clock,
        )
        self.live: dict[int, Sequence] = {}
        self.in_flight: Batch | None = None
        self.free_s = 0.0
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

    def begin(self) -> tuple[float, ...]:
        """Schedule the next step; seconds of each stage, none where there is nothing to do."""
        batch = self.scheduler.schedule()
        if not batch.entries:
            return ()
        self.in_flight = batch
        stage_s = self.step_time(load_of(batch))
        self.last_step_s = max(stage_s)
        return stage_s

    def end(self) -> tuple[list[int], list[int]]:
        """The step is through; requests that gained a token, and those of them that are over."""
        batch, self.in_flight = self.in_flight, None
        assert batch is not None, "no step is under way"
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

    def expected_output(self, otherwise: int) -> float:
        """Mean tokens of the answers so far, for whoever must guess the next one's."""
        return self._output_sum / self._num_finished if self._num_finished else float(otherwise)

    def standing(self) -> tuple[int, int, int]:
        """Prompt tokens to compute after the step under way, decoding sequences, their tokens."""
        num_prompt, num_decodes, context_len = 0, 0, 0
        for sequence in self.live.values():
            if sequence.state is State.DECODING:
                num_decodes += 1
                context_len += len(sequence.tokens)
            else:
                num_prompt += len(sequence.tokens) - sequence.num_computed
        for entry in self.in_flight.entries if self.in_flight is not None else ():
            if entry.sequence.state is not State.DECODING:
                num_prompt -= entry.num_tokens
                num_decodes += entry.num_samples
                context_len += entry.num_samples * len(entry.sequence.tokens)
        return num_prompt, num_decodes, context_len

    def seconds(self, num_prompt: int, num_decodes: int, context_len: int) -> tuple[float, ...]:
        """What a step of so much would take in each stage."""
        return self.step_time(Load(num_prompt, (), num_decodes, context_len))
