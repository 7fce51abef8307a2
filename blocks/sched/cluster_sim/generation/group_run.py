"""``GroupRun``: the stages of a group, shared by the engines of its models."""

from collections.abc import Callable

from blocks.sched.cluster_sim.generation.engine import Engine
from blocks.sched.cluster_sim.generation.settings import EngineSettings

Due = Callable[[Engine], float]


class GroupRun:
    """A group's stages and engines. A step goes through the stages one after another; steps follow
    one another through the pipeline, those of several engines (``overlap``) and, with several
    lanes, of one.

    clock: for each stage, from when on it is free.
    engines: of all its models; new ones each time the group starts.
    loaded: models that requests may be sent to.
    num_lanes: most batches that an engine has on their way.
    wakes_s: when the next step may begin, where that is planned.
    stage_s: of the step begun last.
    work_s: stage seconds of its steps so far.
    """

    def __init__(self, num_stages: int, gap_s: float, up: bool, settings: EngineSettings) -> None:
        self.clock = [0.0] * num_stages
        self.gap_s = gap_s
        self.up = up
        self.overlap = settings.overlap
        self.num_lanes = settings.lanes(num_stages)
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
        num_lanes, holder = self._lanes(), self._holder()
        ready = [engine for engine in self.engines if engine.may_begin(num_lanes)]
        if len(ready) > 1:
            ready.sort(key=lambda engine: (0.0 if due is None else due(engine), engine.turn))
        for engine in ready:
            if holder is not None and holder is not engine:
                return None
            stage_s = engine.begin(num_lanes)
            if not stage_s:
                continue
            if not self.overlap and holder is None:
                self.clock = [self.clock[-1]] * len(self.clock)
            self._turn += 1
            engine.turn = self._turn
            self.stage_s = stage_s
            at_s = now_s
            for stage, seconds in enumerate(stage_s):
                at_s = max(at_s, self.clock[stage]) + seconds
                self.clock[stage] = at_s + self.gap_s
                self.work_s += seconds
            engine.sent_s.append(now_s)
            engine.begun_s, engine.free_s = now_s, at_s
            engine.told_s.append(at_s)
            return engine
        return None

    def _holder(self) -> Engine | None:
        """Whose steps must be through before another engine's begins."""
        if self.overlap:
            return None
        return next((engine for engine in self.engines if engine.in_flight), None)

    def _lanes(self) -> int:
        """Batches that an engine may have on their way just now."""
        if self.overlap or self.num_lanes == 1:
            return self.num_lanes
        return self.num_lanes if sum(bool(engine.live) for engine in self.engines) <= 1 else 1

    def begins_s(self, now_s: float) -> float:
        """When a step may begin: with stage one free; of the engine that has the stages at once, as
        its batches are sent ahead; of another when they are empty.
        """
        if self.overlap:
            return max(now_s, self.clock[0])
        return now_s if self._holder() is not None else max(now_s, self.clock[-1])

    def busy_s(self, engine: Engine, now_s: float) -> float:
        """Seconds until a step of the engine may enter stage one, by its profile."""
        num_lanes = self._lanes()
        shares = self.overlap or (num_lanes > 1 and self._holder() is engine)
        ends_s = engine.told_s[0] if len(engine.in_flight) >= num_lanes else now_s
        return max(0.0, self.clock[0 if shares else -1] - now_s, ends_s - now_s)

    def others_s(self, engine: Engine) -> float:
        """What a step of each other busy engine costs this one."""
        busy = [e for e in self.engines if e is not engine and e.live]
        return sum((e.last_step_s for e in busy), 0.0)

    def has_more(self) -> bool:
        """Whether another step could begin."""
        num_lanes, holder = self._lanes(), self._holder()
        able = self.engines if holder is None else [holder]
        return any(engine.may_begin(num_lanes) for engine in able)
