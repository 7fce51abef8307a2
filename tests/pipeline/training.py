"""A short training in one process and as a pipeline."""

import torch

from blocks.pipeline import in_process_transports, run_ranks
from blocks.pipeline.schedules import token_zero_bubble
from tests.pipeline.running import make_executor
from tests.pipeline.slice_model import Stage, make_sequences, make_stages, plain_step


def differing(num_steps: int) -> list[str]:
    """Parameters and losses that differ after so many steps of AdamW, with dropout."""
    torch.set_num_threads(1)
    (plain, losses), (piped, piped_losses) = train(num_steps, False), train(num_steps, True)
    found = [] if losses == piped_losses else ["losses"]
    for a, b in zip(plain, piped, strict=True):
        theirs = b.state_dict()
        found += [name for name, t in a.state_dict().items() if not torch.equal(t, theirs[name])]
    return found


def train(num_steps: int, piped: bool) -> tuple[list[Stage], list[float]]:
    sequences = make_sequences([(0, 1, 3)])
    stages = make_stages([1, 1], torch.float32, dropout=0.1)
    optimizer = torch.optim.AdamW([p for s in stages for p in s.parameters()], lr=1e-2)
    schedule = token_zero_bubble(2, sequences.num_slices)
    transports = in_process_transports(2)
    executors = [make_executor(schedule, stages, t, torch.float32) for t in transports]
    losses: list[float] = []
    for step in range(num_steps):
        if piped:
            results = run_ranks(
                lambda transport: executors[transport.rank].step(sequences.data, sequences.bounds),
                transports,
            )
            found = results[-1].losses
        else:
            found = plain_step(stages, sequences, step=step)
        losses += [found[key].item() for key in sorted(found)]
        optimizer.step()
        optimizer.zero_grad()
    return stages, losses
