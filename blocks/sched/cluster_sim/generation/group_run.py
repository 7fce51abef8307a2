"""``GroupRun``: the stages of a group, shared by the engines of its models."""

from collections.abc import Callable

from blocks.sched.cluster_sim.generation.engine import Engine

Due = Callable[[Engine], float]


class GroupRun:
    """A group's stages and engines. A step goes through the stages one after another; steps of
    several engines follow one another through the pipeline.

    clock: for each stage, from when on it is free.
    engines: of all its models; new ones each time the group starts.
    loaded: models that requests may be sent to.
    wakes_s: when the next step may begin, where that is planned.
    """

    def __init__(self, num_stages: int, gap_s: float, up: bool) -> None:
        self.clock = [0.0] * num_stages
        self.gap_s = gap_s
        self.up = up
        self.engines: list[Engine] = []
        self.loaded: set[int] = set()
        self.wakes_s: float | None = None
        self.busy_s = 0.0
        self._turn = 0

    def begin_step(self, now_s: float, due: Due | None) -> Engine | None:
        """Begin a step of the engine whose turn it is; None where there is nothing to begin.

        Args:
            due: when an engine's most urgent request is due; None for the longest unserved first.
        """
        ready = [e for e in self.engines if e.in_flight is None and e.scheduler.has_work()]
        if len(ready) > 1:
            ready.sort(key=lambda engine: (0.0 if due is None else due(engine), engine.turn))
        for engine in ready:
            stage_s = engine.begin()
            if not stage_s:
                continue
            self._turn += 1
            engine.turn = self._turn
            at_s = now_s
            for stage, seconds in enumerate(stage_s):
                at_s = max(at_s, self.clock[stage]) + seconds
                self.clock[stage] = at_s + self.gap_s
                self.busy_s += seconds
            engine.free_s = at_s
            return engine
        return None

    def has_more(self) -> bool:
        """Whether another engine could begin a step."""
        return any(e.in_flight is None and e.scheduler.has_work() for e in self.engines)
