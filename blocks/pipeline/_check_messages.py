"""Proofs about sends and receives: which there are, their order in a channel, rendezvous."""

from collections.abc import Iterator

from blocks._checks import fail
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.dependencies import Deadlock, sender
from blocks.pipeline.schedule import Schedule

SENDS = (Kind.SEND_FORWARD, Kind.SEND_BACKWARD)


def check_messages(schedule: Schedule, indices: list[dict[Action, int]]) -> None:
    """Every edge between ranks has its messages, and there are no others.

    Raises:
        ValueError: one that is missing or belongs to no edge.
    """
    expected: list[set[Action]] = [set() for _ in schedule.programs]
    for send, receive in _messages(schedule):
        expected[schedule.placement[send.stage]].add(send)
        expected[schedule.placement[receive.stage]].add(receive)
    for rank, at in enumerate(indices):
        for action, index in at.items():
            if not action.kind.computes and action not in expected[rank]:
                peers = sorted(
                    {
                        a.peer
                        for a in expected[rank]
                        if a._replace(peer=-1) == action.on(action.kind)
                    }
                )
                wanted = f"a peer among the stages {peers}" if peers else "no such message"
                raise fail(f"rank {rank}, index {index}, {action}", wanted, action.peer)
        for action in sorted(expected[rank] - set(at)):
            raise fail(f"rank {rank}", f"{action} in its program", f"no {action}")


def _messages(schedule: Schedule) -> Iterator[tuple[Action, Action]]:
    """Sends with their receives, over all edges between ranks."""
    for source, target in schedule.edges:
        if schedule.placement[source] == schedule.placement[target]:
            continue
        for sequence, count in enumerate(schedule.num_slices):
            for piece in range(count):
                for kind, stage, peer in (
                    (Kind.RECEIVE_FORWARD, target, source),
                    (Kind.RECEIVE_BACKWARD, source, target),
                ):
                    chunk = schedule.chunks[stage]
                    receive = Action(kind, stage, chunk, sequence, piece, peer)
                    yield sender(schedule, receive), receive


def check_channels(schedule: Schedule) -> None:
    """The k-th send from a rank to another meets the k-th receive there from it.

    Raises:
        ValueError: the first receive out of order.
    """
    sends: dict[tuple[int, int], list[tuple[int, Action]]] = {}
    receives: dict[tuple[int, int], list[tuple[int, Action]]] = {}
    for rank, program in enumerate(schedule.programs):
        for index, action in enumerate(program):
            if action.kind in SENDS:
                channel = (rank, schedule.placement[action.peer])
                sends.setdefault(channel, []).append((index, action))
            elif not action.kind.computes:
                channel = (schedule.placement[action.peer], rank)
                receives.setdefault(channel, []).append((index, action))
    for (source, target), received in receives.items():
        for (sent_at, send), (index, receive) in zip(sends[source, target], received, strict=True):
            if sender(schedule, receive) != send:
                wanted = f"the receive of {send}, which rank {source} sends next (index {sent_at})"
                raise fail(f"rank {target}, index {index}, {receive}", wanted, "another message")


def check_rendezvous(schedule: Schedule) -> None:
    """All programs end when sends and receives wait for each other.

    Compute actions never wait here: what they need has been received or done before them.

    Raises:
        Deadlock: the ranks that wait for ever.
    """
    moves = [
        [(index, action) for index, action in enumerate(program) if not action.kind.computes]
        for program in schedule.programs
    ]
    at = [0] * len(moves)
    meets: dict[Action, Action] = {}
    for send, receive in _messages(schedule):
        meets[send], meets[receive] = receive, send
    awake = list(range(len(moves)))
    while awake:
        rank = awake.pop()
        if at[rank] == len(moves[rank]):
            continue
        action = moves[rank][at[rank]][1]
        peer = schedule.placement[action.peer]
        if at[peer] < len(moves[peer]) and moves[peer][at[peer]][1] == meets[action]:
            at[rank] += 1
            at[peer] += 1
            awake += [rank, peer]
    stuck = []
    for rank, position in enumerate(at):
        if position < len(moves[rank]):
            index, action = moves[rank][position]
            partner = meets[action]
            peer = schedule.placement[action.peer]
            where = schedule.programs[peer].index(partner)
            waits = f"waits for {partner} of rank {peer} (index {where})"
            stuck.append(f"rank {rank} at {action} (index {index}) {waits}")
    if stuck:
        what = "deadlock with sends that wait for their receives"
        raise Deadlock(f"{what}: expected every rank to reach its end, got " + "; ".join(stuck))
