"""``solve``: the strategies of a graph on a mesh that take least time."""

from collections.abc import Mapping

from blocks.sharding.cost.cost_model import CostModel
from blocks.sharding.intra_op.intra_op_plan import IntraOpPlan
from blocks.sharding.intra_op.minimise import SWEEPS, minimise
from blocks.sharding.intra_op.pins import Pin
from blocks.sharding.intra_op.pose import Allowed, StateBytes, adamw_bytes, pose
from blocks.sharding.intra_op.price import price
from blocks.sharding.intra_op.table_cache import TableCache
from blocks.sharding.intra_op.with_memory import with_memory
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_graph import OpGraph


def solve(
    graph: OpGraph,
    mesh: Mesh,
    cost: CostModel,
    *,
    memory_cap: int | float | None = None,
    num_microbatches: int = 1,
    pins: Mapping[str, Pin] | None = None,
    in_flight: int | float = 1,
    allowed: Allowed | None = None,
    state_bytes: StateBytes = adamw_bytes,
    sweeps: int = SWEEPS,
    cache: TableCache | None = None,
) -> IntraOpPlan:
    """One strategy for every operation, so that a microbatch and its share of the update take the
    least time.

    Data, tensor, sequence and expert parallelism are what it chooses; so is how parameters,
    gradients and optimizer state lie: cut and gathered where they are read (ZeRO-3), gradients
    reduce-scattered (ZeRO-2), optimizer state alone cut (ZeRO-1). Nothing of it is a mode.

    Args:
        cost: seconds on this mesh; ``MeshCost`` of a cluster.
        memory_cap: bytes a rank may hold: parameters, gradients, optimizer state, and saved
            activations of ``in_flight`` microbatches; not what an operation needs for a moment.
        num_microbatches: of a step.
        pins: what is decided beforehand: by name of a node its ``Strategy``, or the placements
            (one an axis) in which its first output lies; by name of a value, a parameter's too,
            the placements in which its maker leaves it. Inputs and outputs of a stage are nodes.
        in_flight: microbatches whose activations are held at once.
        allowed: keeps strategies out of the choice.
        state_bytes: what the optimizer keeps for every element of a parameter.
        sweeps: how much is done for the bound where the graph is too knotted for an exact answer;
            0 for a plan whose bound says little.
        cache: of tables made before, for other solves of graphs with equal blocks.

    Raises:
        ValueError: pins that cannot be honoured.
        OutOfMemory: no choice keeps to the cap; says what the least would be.

    Reference:
        Zheng et al., "Alpa", 2022, section 4 (the problem, posed as an integer program).
    """
    posed = pose(
        graph,
        mesh,
        cost,
        num_microbatches=num_microbatches,
        in_flight=in_flight,
        pins=pins,
        allowed=allowed,
        state_bytes=state_bytes,
    )
    if memory_cap is None:
        found = minimise(posed.problem, hints=posed.hints, sweeps=sweeps, cache=cache)
    else:
        found = with_memory(
            posed.problem, memory_cap, hints=posed.hints, sweeps=sweeps, cache=cache
        )
    strategies = posed.strategies(found.labels)
    total = price(graph, strategies, mesh, cost, state_bytes=state_bytes)
    return IntraOpPlan(
        mesh, strategies, total, num_microbatches, in_flight, found.bound, memory_cap
    )
