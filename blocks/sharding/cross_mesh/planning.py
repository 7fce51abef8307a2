"""``plan_cross_mesh``: which messages take a tensor from one mesh to another. Needs no torch."""

import random
from collections.abc import Sequence
from typing import get_args

from blocks._checks import check, check_count
from blocks.sharding.cross_mesh.balance import Balance, Request, assign
from blocks.sharding.cross_mesh.box import Box, cut_box, holders, num_elements, overlap
from blocks.sharding.cross_mesh.plan import CrossMeshPlan, Mode, Transfer
from blocks.sharding.placement import Partial, Replicate, Shard
from blocks.sharding.spec import ShardingSpec


def plan_cross_mesh(
    shape: Sequence[int],
    source: ShardingSpec,
    target: ShardingSpec,
    *,
    mode: Mode = "all_gather",
    balance: Balance = "size",
    num_chunks: int = 4,
    rounds: int = 20,
    seed: int = 0,
) -> CrossMeshPlan:
    """The messages after which every rank of the target's mesh holds its part.

    Every part that the target wants overlaps parts of the source, any of whose holders may send
    it. Sums are taken on the source's mesh first: by a reduce-scatter where a dim can be cut, so
    that more ranks have something to send, else by an all-reduce. Ranks that hold what they want
    send nothing.

    Where ranks want the same part (``all_gather``), the part is cut in as many as there are of
    them, along the dim that gives the most even runs. Each comes from the source once, whatever
    the sizes are: runs may be uneven, and travel unpadded.

    Args:
        shape: of the whole tensor.
        mode: how ranks that want the same get it.
        balance: how senders are chosen.
        num_chunks: of a part in a broadcast.
        rounds: random orders that the balance ``order`` tries.
        seed: of those.

    >>> from blocks.sharding.mesh import Mesh
    >>> a, b = Mesh.of(x=2), Mesh(("x",), (2,), (2, 3))
    >>> cut, whole = ShardingSpec(a, (Shard(0),)), ShardingSpec(b, (Replicate(),))
    >>> modes = ("send_recv", "all_gather")
    >>> [plan_cross_mesh((4,), cut, whole, mode=mode).cross_bytes(4) for mode in modes]
    [32, 16]

    Reference:
        Zheng et al., "Alpa", 2022, section 6 (local all-gather); Zhuang et al., "On optimizing the
        communication of model parallelism", 2023 (broadcast, order and load of the senders).
    """
    for name, chosen, known in (("mode", mode, Mode), ("balance", balance, Balance)):
        check(chosen in get_args(known), name, f"one of {get_args(known)}", repr(chosen))
    check_count("num_chunks", num_chunks)
    check_count("rounds", rounds)
    reduced, given = _reduced(source, shape), tuple(shape)
    for spec in (source, target):
        spec.local_shape(given, spec.mesh.ranks[0])  # dims that the shape does not have
    held = holders(reduced, given)
    rng = random.Random(seed)
    wanted = holders(target, given)
    if mode == "broadcast":
        transfers = _broadcast(held, wanted, balance, num_chunks, rng, rounds)
    else:
        transfers = _direct(held, wanted, mode, balance, rng, rounds)
    return CrossMeshPlan(given, source, target, reduced, mode, tuple(transfers))


def _reduced(source: ShardingSpec, shape: Sequence[int]) -> ShardingSpec:
    """The source without sums."""
    now = source
    for axis in reversed(source.mesh.axes):
        if not isinstance(now.placement(axis), Partial):
            continue
        sizes, num_ranks = now.local_shape(shape, now.mesh.ranks[0]), now.mesh.size(axis)
        inner = now.placements[now.mesh.index(axis) + 1 :]
        free = [d for d, n in enumerate(sizes) if n >= num_ranks and Shard(d) not in inner]
        even = [d for d in free if sizes[d] % num_ranks == 0]
        now = now.replace(axis, Shard((even or free)[0]) if free else Replicate())
    return now


Held = dict[Box, tuple[int, ...]]


def _pieces(held: Held, box: Box) -> list[tuple[Box, tuple[int, ...]]]:
    """The parts of a box that some ranks hold, and which."""
    found = ((overlap(box, other), ranks) for other, ranks in held.items())
    return [(piece, ranks) for piece, ranks in found if piece is not None]


def _direct(
    held: Held, wanted: Held, mode: Mode, balance: Balance, rng: random.Random, rounds: int
) -> list[Transfer]:
    """Each rank gets its part, or its share of it and then the others'."""
    requests: list[Request] = []
    kept: list[Transfer] = []
    relays: list[Transfer] = []
    for box, targets in wanted.items():
        shares = _shares(held, box, len(targets)) if mode == "all_gather" else [box] * len(targets)
        for target, share in zip(targets, shares, strict=False):
            for piece, ranks in _pieces(held, share):
                if target in ranks:
                    kept.append(Transfer(piece, target, target, False))
                else:
                    requests.append(Request(piece, ranks, target))
        if mode == "all_gather":
            relays += _exchange(held, targets, shares)
    sent = [
        Transfer(requests[at].box, sender, requests[at].target, False)
        for at, sender in assign(requests, balance, rng, rounds)
    ]
    return [*kept, *sent, *relays]


def _shares(held: Held, box: Box, count: int) -> list[Box]:
    """The box cut in ``count``, or fewer where no dim is as long: the longest share as short as
    can be, then in as few pieces."""
    if count == 1 or not box:
        return [box]

    def cost(dim: int) -> tuple[int, int]:
        shares = cut_box(box, dim, count)
        longest = max(num_elements(share) for share in shares)
        return longest, sum(len(_pieces(held, share)) for share in shares)

    return list(cut_box(box, min(range(len(box)), key=cost), count))


def _exchange(held: Held, targets: Sequence[int], shares: Sequence[Box]) -> list[Transfer]:
    """Every share goes from the rank that got it to those that want it too.

    In turns, so that at any time every rank sends to one and receives from one.
    """
    found: list[Transfer] = []
    pieces = [_pieces(held, share) for share in shares]
    for shift in range(1, len(targets)):
        for at, share in enumerate(shares):
            target = targets[(at + shift) % len(targets)]
            own = [piece for piece, ranks in pieces[at] if target in ranks]
            if sum(map(num_elements, own)) == num_elements(share):
                found += [Transfer(piece, target, target, False) for piece in own]
            else:
                found.append(Transfer(share, targets[at], target, True))
    return found


def _broadcast(
    held: Held, wanted: Held, balance: Balance, num_chunks: int, rng: random.Random, rounds: int
) -> list[Transfer]:
    """Each piece goes from rank to rank, chunk behind chunk."""
    requests: list[Request] = []
    chains: list[list[int]] = []
    kept: list[Transfer] = []
    for box, targets in wanted.items():
        for piece, ranks in _pieces(held, box):
            kept += [Transfer(piece, rank, rank, False) for rank in targets if rank in ranks]
            if chain := [rank for rank in targets if rank not in ranks]:
                requests.append(Request(piece, ranks, chain[0]))
                chains.append(chain)
    found: list[list[Transfer]] = [[] for _ in range(num_chunks)]
    for at, sender in assign(requests, balance, rng, rounds):
        piece, chain = requests[at].box, chains[at]
        dim = max(range(len(piece)), key=lambda d: piece[d].size, default=None)
        chunks = (piece,) if dim is None or len(chain) == 1 else cut_box(piece, dim, num_chunks)
        hops = list(zip([sender, *chain], chain, strict=False))
        for number, chunk in enumerate(chunks):
            found[number] += [Transfer(chunk, a, b, hop > 0) for hop, (a, b) in enumerate(hops)]
    return kept + [transfer for chunk in found for transfer in chunk]
