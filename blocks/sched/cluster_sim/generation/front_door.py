"""``FrontDoor``: which engine a request is sent to, and whether it is taken at all."""

from collections.abc import Sequence
from typing import NamedTuple

from blocks.sched.cluster_sim.generation.engine import Engine
from blocks.sched.cluster_sim.generation.group_run import GroupRun
from blocks.sched.cluster_sim.generation.predict import predict
from blocks.sched.cluster_sim.generation.settings import Admission, EngineSettings
from blocks.sched.workload.workload import Workload


class Choice(NamedTuple):
    """The best engine for a request.

    refused: even there it is predicted to miss its limits. ttft_s: predicted seconds from its
    arrival to the first token. at: index of the group. engine: in it.
    """

    refused: bool
    ttft_s: float
    at: int
    engine: Engine


class FrontDoor:
    """Knows what stands in every engine, and the limits of every request.

    Args:
        hosts: for each model the groups that host it.
        request_s: seconds that every token takes from the stages to who asked.
    """

    def __init__(
        self,
        workload: Workload,
        groups: Sequence[GroupRun],
        hosts: Sequence[Sequence[int]],
        settings: EngineSettings,
        admission: Admission,
        request_s: float,
    ) -> None:
        self._workload, self._groups, self._hosts = workload, groups, hosts
        self._settings, self._admission, self._request_s = settings, admission, request_s
        self._ttft_limit_s = workload.slo_s.tolist()
        self._tpot_limit_s = workload.tpot_s.tolist()

    def choose(self, request: int, now_s: float) -> Choice | None:
        """The engine that is predicted to answer first of those that keep the limits of a request,
        the one with the fewest requests where two are alike; None where no group could take it."""
        workload, admission = self._workload, self._admission
        model, prompt_len = int(workload.model[request]), int(workload.prompt_len[request])
        beside_s = now_s - float(workload.arrival_s[request]) + self._request_s
        ttft_limit_s = self._ttft_limit_s[request] * admission.slack
        tpot_limit_s = self._tpot_limit_s[request] * admission.slack
        best: Choice | None = None
        best_rank: tuple[bool, float, int] | None = None
        for at in self._hosts[model]:
            group = self._groups[at]
            if not group.up or model not in group.loaded:
                continue
            for engine in group.engines:
                if engine.model == model:
                    stands = engine.stands()
                    ttft_s, tpot_s = predict(
                        stands,
                        engine.step_time,
                        self._settings,
                        prompt_len,
                        busy_s=group.busy_s(engine, now_s),
                        others_s=group.others_s(engine),
                    )
                    ttft_s += beside_s
                    late = admission.ttft and ttft_s > ttft_limit_s
                    slow = admission.tpot and tpot_s > tpot_limit_s
                    rank = late or slow, ttft_s, stands.num_live
                    if best_rank is None or rank < best_rank:
                        best_rank, best = rank, Choice(late or slow, ttft_s, at, engine)
        return best
