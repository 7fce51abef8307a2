"""The executor: gradients bit for bit those of a plain loop, whatever schedule and transport."""

import pytest
import torch
from torch import Tensor, nn

from blocks.pipeline import (
    Action,
    Executor,
    Kind,
    Schedule,
    SliceContext,
    TensorSpec,
    in_process_transports,
    run_ranks,
)

BOUNDS = (0, 2, 6)


class Layer(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(8, 8), last

    def forward(self, *inputs: Tensor, context: SliceContext) -> Tensor:
        x = inputs[0] if inputs else context.data["x"][context.start : context.stop]
        y = torch.tanh(self.linear(x))
        return y.square().sum() if self.last else y


def two_stages(split: bool) -> Schedule:
    programs = []
    for stage in range(2):
        program = [Action(Kind.FORWARD, stage, 0, 0, piece) for piece in range(2)]
        for piece in (1, 0):
            both = (Kind.BACKWARD, Kind.WEIGHT) if split else (Kind.FULL_BACKWARD,)
            program += [Action(kind, stage, 0, 0, piece) for kind in both]
        programs.append(tuple(program))
    return Schedule("two", (0, 1), (2,), tuple(programs))


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    found = [p.grad for p in parameters if p.grad is not None]
    assert len(found) == len(parameters)
    return found


@pytest.mark.parametrize("split", [False, True])
def test_two_ranks_give_the_gradients_of_a_plain_loop(split: bool) -> None:
    torch.manual_seed(0)
    stages, x = [Layer(False), Layer(True)], torch.randn(6, 8)
    for start, stop in ((2, 6), (0, 2)):
        hidden = torch.tanh(stages[0].linear(x[start:stop]))
        torch.tanh(stages[1].linear(hidden)).square().sum().backward()
    parameters = [p for stage in stages for p in stage.parameters()]
    expected = gradients(parameters)
    for p in parameters:
        p.grad = None

    def work(transport):
        executor = Executor(
            transport.rank,
            two_stages(split),
            {transport.rank: stages[transport.rank]},
            transport,
            wire=lambda source, target, num_tokens: [TensorSpec((num_tokens, 8), torch.float32)],
        )
        return executor.step([{"x": x}], [BOUNDS])

    result = run_ranks(work, in_process_transports(2, max_delay_s=0.01))[1]
    assert sorted(result.losses) == [(0, 0), (0, 1)]
    assert all(map(torch.equal, gradients(parameters), expected))
