"""``count``: what a program sends, computes and holds, on one rank, before it runs. No torch."""

import dataclasses
import math
from collections.abc import Sequence

from blocks._checks import check_count, check_positive
from blocks.sharding.op_graph import Phase
from blocks.sharding.placement import Placement
from blocks.sharding.program.instruction import Compute
from blocks.sharding.program.ledger import Inside, Ledger
from blocks.sharding.program.program import Program, inputs_of
from blocks.sharding.program.traffic import Traffic, traffic_of
from blocks.sharding.strategy import local_sizes


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one rank sends, computes and holds.

    traffic: of forward and backward for one microbatch, of the update for one step.
    forward_flops, backward_flops: of one microbatch.
    parameter_bytes, gradient_bytes, moment_bytes: held during the whole step; gradients are the
        accumulators, moments the optimizer's, with a float32 copy of narrower parameters.
    saved_bytes: what a forward pass leaves to its backward pass.
    forward_bytes, backward_bytes: the most that is held in such a pass beside the three, with what
        its own microbatch saved.
    update_bytes: the most that the update holds beside the three.
    """

    rank: int
    traffic: tuple[Traffic, ...]
    forward_flops: int
    backward_flops: int
    parameter_bytes: int
    gradient_bytes: int
    moment_bytes: int
    saved_bytes: int
    forward_bytes: int
    backward_bytes: int
    update_bytes: int

    def collective_bytes(self, *phases: Phase, num_microbatches: int = 1) -> dict[str, int]:
        """Bytes sent, by collective: of a step, or of the phases named."""
        return self._sums("bytes", phases, num_microbatches)

    def num_collectives(self, *phases: Phase, num_microbatches: int = 1) -> dict[str, int]:
        """Number of collectives, by kind: of a step, or of the phases named."""
        return self._sums("number", phases, num_microbatches)

    def _sums(self, field: str, phases: Sequence[Phase], num_microbatches: int) -> dict[str, int]:
        sums: dict[str, int] = {}
        for entry in self.traffic:
            if phases and entry.phase not in phases:
                continue
            times = 1 if entry.phase == "update" else num_microbatches
            before = sums.get(entry.collective, 0)
            sums[entry.collective] = before + times * getattr(entry, field)
        return sums

    @property
    def fixed_bytes(self) -> int:
        """Parameters, gradients and moments."""
        return self.parameter_bytes + self.gradient_bytes + self.moment_bytes

    def peak_bytes(self, in_flight: int = 1) -> int:
        """The most that the program holds at once.

        Messages between the stages of a pipeline are not among it, while they are on their way:
        what has arrived before its pass begins, and what is still being sent after its pass ended.
        How many these are is up to schedule and transport, which a program knows nothing of.

        Args:
            in_flight: microbatches whose forward pass is done and whose backward pass is not, the
                current one among them.
        """
        check_count("in_flight", in_flight)
        passes = max(self.forward_bytes, self.backward_bytes)
        passes += (in_flight - 1) * self.saved_bytes
        return self.fixed_bytes + max(passes, self.update_bytes)

    def __str__(self) -> str:
        lines = [
            f"rank {self.rank}: {self.forward_flops:,} + {self.backward_flops:,} FLOPs, "
            f"peak {self.peak_bytes():,} bytes (parameters {self.parameter_bytes:,}, "
            f"gradients {self.gradient_bytes:,}, moments {self.moment_bytes:,}, "
            f"saved {self.saved_bytes:,})"
        ]
        lines += [
            f"  {t.phase} {t.collective} along {t.axis}: {t.number} of together {t.bytes:,} bytes"
            for t in self.traffic
        ]
        return "\n".join(lines)


def count(
    program: Program, rank: int, *, num_moments: int = 2, inside: Inside | None = None
) -> Counts:
    """What ``rank`` sends, computes and holds when it runs a program.

    Args:
        num_moments: tensors of optimizer state for each parameter, in float32 or wider, that lie
            as its update runs: 2 for AdamW, 1 for momentum, 0 for plain descent.
        inside: what operations allocate inside of themselves; nothing where None.
    """
    check_positive("num_moments", num_moments + 1)
    graph, mesh = program.graph, program.mesh
    flops: dict[Phase, int] = {"forward": 0, "backward": 0, "update": 0}
    for phase in flops:
        for instruction in program.phase(phase):
            if isinstance(instruction, Compute):
                node = graph.nodes[instruction.node]
                if node.rule.flops_per_point:
                    strategy = program.strategies[instruction.node]
                    flops[phase] += node.rule.flops_of(local_sizes(node.rule, strategy, mesh, rank))
    ledger = Ledger(program, rank, inside=inside)
    parameters, gradients = program.names("parameter"), program.names("accumulate")
    for name in (*parameters, *gradients):
        ledger.hold(name)
    parameter_bytes, gradient_bytes = ledger.bytes_of(parameters), ledger.bytes_of(gradients)
    fixed = ledger.held
    peaks: dict[Phase, int] = {}
    saved_bytes = 0
    for phase in flops:
        for name in inputs_of(graph, phase):
            ledger.hold(name)
        ledger.restart_peak()
        ledger.run(program.phase(phase))
        peaks[phase] = ledger.peak - fixed
        for name in program.handed_over(phase):
            ledger.free(name)
        if phase == "forward":
            saved_bytes = ledger.held - fixed
    return Counts(
        rank,
        tuple(t for phase in flops for t in traffic_of(program, phase, rank)),
        flops["forward"],
        flops["backward"],
        parameter_bytes,
        gradient_bytes,
        _moment_bytes(program, rank, num_moments),
        saved_bytes,
        peaks["forward"],
        peaks["backward"],
        peaks["update"],
    )


def _moment_bytes(program: Program, rank: int, num_moments: int) -> int:
    """Moments, and the master copy of parameters narrower than float32, as the update lies."""
    ledger, total = Ledger(program, rank), 0
    for node, strategy in zip(program.graph.nodes, program.strategies, strict=True):
        if node.role == "update":
            value = program.graph.values[node.inputs[0]]
            placements: tuple[Placement, ...] = strategy.inputs[0]
            numel = math.prod(ledger.shape_under(value.shape, placements))
            master = 4 if value.itemsize < 4 else 0
            total += numel * (num_moments * max(4, value.itemsize) + master)
    return total
