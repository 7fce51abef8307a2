"""``GroupRun``: the stages of a group, shared by the engines of its models."""

from collections.abc import Callable

from blocks.sched.cluster_sim.generation.engine import Engine

Due = Callable[[Engine], float]


class GroupRun:
    """A group's stages and engines. A step goes through the stages one after another; steps follow
    one another through the pipeline, those of several engines and, with several lanes, of one.

    clock: for each stage, from when on it is free.
    engines: of all its models; new ones each time the group starts.
    loaded: models that requests may be sent to.
    overlap: whether a step may begin before the one before it is through all stages.
    wakes_s: when the next step may begin, where that is planned.
    stage_s: of the step begun last.
    work_s: stage seconds of its steps so far.
    """

    def __init__(self, num_stages: int, gap_s: float, up: bool, overlap: bool = True) -> None:
        self.clock = [0.0] * num_stages
        self.gap_s = gap_s
        self.up = up
        self.overlap = overlap
        self.engines: list[Engine] = []
        self.loaded: set[int] = set()
        self.wakes_s: float | None = None
        self.work_s = 0.0
        self.stage_s: tuple[float, ...] = ()
        self._turn = 0

    def begin_step(self, now_s: float, due: Due | None) -> Engine | None:
        """Begin a step of the engine whose turn it is; None where there is nothing to begin.

        Args:
            due: when an engine's most urgent request is due; None for the longest unserved first.
        """
        if self._is_held():
            return None
        ready = [engine for engine in self.engines if engine.may_begin()]
        if len(ready) > 1:
            ready.sort(key=lambda engine: (0.0 if due is None else due(engine), engine.turn))
        for engine in ready:
            stage_s = engine.begin()
            if not stage_s:
                continue
            self._turn += 1
            engine.turn = self._turn
            self.stage_s = stage_s
            at_s = now_s
            for stage, seconds in enumerate(stage_s):
                at_s = max(at_s, self.clock[stage]) + seconds
                self.clock[stage] = at_s + self.gap_s
                self.work_s += seconds
            if not self.overlap:
                self.clock = [self.clock[-1]] * len(self.clock)
            engine.begun_s, engine.free_s = now_s, at_s
            engine.told_s.append(at_s)
            return engine
        return None

    def _is_held(self) -> bool:
        return not self.overlap and any(engine.in_flight for engine in self.engines)

    def busy_s(self, engine: Engine, now_s: float) -> float:
        """Seconds until the engine may begin a step, by its profile."""
        is_full = len(engine.in_flight) >= engine.settings.num_lanes
        ends_s = engine.told_s[0] if is_full else now_s
        return max(0.0, self.clock[0] - now_s, ends_s - now_s)

    def others_s(self, engine: Engine) -> float:
        """What a step of each other busy engine costs this one."""
        busy = [e for e in self.engines if e is not engine and e.live]
        return sum((e.last_step_s for e in busy), 0.0)

    def has_more(self) -> bool:
        """Whether another step could begin."""
        return not self._is_held() and any(engine.may_begin() for engine in self.engines)
