"""``check_holds``: whether a cross-mesh plan does what it says. Needs no torch."""

from blocks._checks import check
from blocks.sharding.cross_mesh.box import Box, holders, num_elements, overlap
from blocks.sharding.cross_mesh.plan import CrossMeshPlan


def check_holds(plan: CrossMeshPlan) -> None:
    """Check that every sender has what it sends, and every rank gets its part exactly once.

    Raises:
        ValueError: a plan that does not do what it says.
    """
    arrived: dict[int, list[Box]] = {}
    for transfer in plan.transfers:
        sender = transfer.source
        if transfer.relayed:
            parts = arrived.get(sender, [])
        else:
            inside = sender in plan.reduced.mesh.ranks
            parts = [plan.reduced.runs(plan.shape, sender)] if inside else []
        has = [overlap(part, transfer.box) for part in parts]
        size = sum(num_elements(part) for part in has if part is not None)
        check(size == num_elements(transfer.box), "transfer", f"of what {sender} has", transfer)
        own = arrived.setdefault(transfer.target, [])
        twice = [part for part in own if overlap(part, transfer.box) is not None]
        check(not twice, "transfer", "nothing a second time", transfer)
        own.append(transfer.box)
    wanted = {
        rank: box for box, ranks in holders(plan.target, plan.shape).items() for rank in ranks
    }
    for rank, box in wanted.items():
        got = sum(num_elements(part) for part in arrived.get(rank, []))
        inside = all(overlap(part, box) == part for part in arrived.get(rank, []))
        check(inside and got == num_elements(box), f"part of rank {rank}", box, arrived.get(rank))
