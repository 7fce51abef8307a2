"""What a stage received is held no longer than its passes need it."""

from collections.abc import Mapping

from blocks.pipeline import TraceEvent, in_process_transports
from blocks.pipeline.action import Kind
from blocks.pipeline.schedules import gpipe
from blocks.sharding import Group, Mesh, count, run_local
from blocks.sharding.program.ledger import Ledger
from blocks.sharding.stage_graph import RECEIVE
from recipes.plan.execute import AdamW, FxOperations, PlannedJob
from recipes.plan.execute.memory_tracker import MemoryTracker
from tests.plan.executing import random_stages
from tests.plan.family_cases import family_case

MESHES = (Mesh(("a",), (1,), (0,)), Mesh(("a",), (2,), (1, 2)))
COUNT = 4


def test_after_all_forwards_a_stage_holds_what_they_saved() -> None:
    case = family_case("decoder:tiny")
    stages = random_stages(case.traced, MESHES, 0)
    job = PlannedJob(
        tuple(stages),
        gpipe(2, (1,) * COUNT),
        FxOperations(case.traced.ops),
        case.state,
        AdamW(),
    )
    wires = in_process_transports(job.num_devices)
    microbatches = [case.batch(at) for at in range(COUNT)]

    def work(device: int, groups: Mapping[str, Group]) -> int:
        tracker, held = MemoryTracker(), []

        def hear(event: TraceEvent) -> None:
            if event.action.kind is Kind.FORWARD:
                held.append(tracker.held)

        with tracker:
            job.pipeline(device, groups, wires[device], on_event=hear).step(microbatches)
        assert len(held) == COUNT
        return held[-1]

    found = run_local(job.meshes, work)
    program, cut = stages[1].program, stages[1].cut
    once = {cut.graph.values[cut.local[value]].name for value in cut.once}
    for device, held in zip((1, 2), found[1:], strict=True):  # the last stage: it sends nothing on
        counts, ledger = count(program, device), Ledger(program, device)
        received = {
            (name := program.graph.values[node.outputs[0]].name): ledger.num_bytes(name)
            for node in program.graph.nodes
            if node.op == RECEIVE and node.phase == "forward"
        }
        shared = sum(received.pop(name) for name in once & received.keys())  # a tied head
        least = counts.fixed_bytes + COUNT * counts.saved_bytes - (COUNT - 1) * shared
        assert sum(received.values()) >= 4096
        rest = min(received.values()) + 64 * COUNT  # what came last, losses, tokens
        assert 0 <= held - least <= rest
