"""From the sums of a step to ``.grad``: lanes, uses of tied weights, what is there already."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from blocks._checks import check
from blocks.pipeline.gradient_sums import tree_sum
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.stage import StageModule
from blocks.pipeline.stage_runner import StageRunner
from blocks.pipeline.ties import Tie, sum_tie
from blocks.pipeline.transport import Transport
from blocks.pipeline.watch import Watch


def leave_gradients(
    runners: Mapping[int, StageRunner],
    ties: Sequence[Tie],
    lanes: Sequence[int],
    schedule: Schedule,
    transport: Transport,
    watch: Watch,
) -> None:
    """End a step: add the sums of all slices to ``.grad`` of every parameter.

    In every lane, the uses of a tied weight are added in stage order; then lanes are added as a
    balanced binary tree. A weight nobody used gets nothing, a tied one zeros.

    Args:
        lanes: those of the step, ascending.
    """
    sums = {
        stage: {id(parameter): (parameter, found) for parameter, found in runner.finish()}
        for stage, runner in runners.items()
    }
    for number, tie in enumerate(ties):
        tied = {s: tied_weight(runners[s].stage, tie[s], s) for s in tie if s in runners}
        if not tied:
            continue
        transport.post_status(f"the sum of tied weight {number}")
        own = {}
        for stage, weight in tied.items():
            _, kept = sums[stage].pop(id(weight))
            by_lane = kept.by_lane()
            own[stage] = [by_lane.get(lane, torch.zeros_like(weight)) for lane in lanes]
        totals = sum_tie(number, schedule, transport, watch, tie, own)
        for weight in {id(weight): weight for weight in tied.values()}.values():
            _accumulate(weight, tree_sum(totals).clone())
    for stage in sorted(sums):
        for parameter, found in sums[stage].values():
            total = found.total()
            if total is not None:
                _accumulate(parameter, total)


def check_ties(ties: Sequence[Tie], schedule: Schedule, stages: Mapping[int, StageModule]) -> None:
    """
    Raises:
        ValueError: ties of stages or weights there are none of.
    """
    used: set[tuple[int, int]] = set()
    for tie in ties:
        known = len(tie) >= 2 and all(0 <= stage < schedule.num_stages for stage in tie)
        check(known, "tie", f"two stages or more below {schedule.num_stages}", sorted(tie))
        for stage in tie:
            if stage in stages:
                weight = id(tied_weight(stages[stage], tie[stage], stage))
                once = (stage, weight) not in used
                check(once, f"ties of stage {stage}", "a weight in one tie", tie[stage])
                used.add((stage, weight))


def tied_weight(stage: StageModule, name: str, index: int) -> nn.Parameter:
    """
    Raises:
        ValueError: a name that is none of a weight of the stage.
    """
    weights = (
        dict(stage.named_parameters(remove_duplicate=False)) if isinstance(stage, nn.Module) else {}
    )
    check(name in weights, f"tied weight of stage {index}", f"one of {sorted(weights)}", name)
    return weights[name]


@torch.no_grad()
def _accumulate(parameter: nn.Parameter, total: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = total
    else:
        parameter.grad.add_(total)
