"""What a schedule must be, said another way than ``check_schedule`` does: as a graph."""

import random
from collections.abc import Iterable

from blocks.pipeline import Action, Kind, Schedule, check_schedule
from tests.pipeline.faults import mutant
from tests.pipeline.random_programs import random_schedule


def sound(schedule: Schedule) -> bool:
    """Another way to say what a schedule must be: every action that must be there is, and
    its order with messages as meetings of two ranks has no cycle."""
    wanted: dict[Action, int] = {}
    for stage, chunk in enumerate(schedule.chunks):
        for sequence, count in enumerate(schedule.num_slices):
            for piece in range(count):
                at = Action(Kind.FORWARD, stage, chunk, sequence, piece)
                wanted[at] = wanted[at.on(Kind.BACKWARD)] = wanted[at.on(Kind.WEIGHT)] = 1
    meetings: dict[tuple, list[tuple[int, int]]] = {}
    nodes: dict[Action, object] = {}
    after: dict[object, set] = {}
    for rank, program in enumerate(schedule.programs):
        before = None
        for index, action in enumerate(program):
            node: object = (rank, index)
            kind = action.kind
            if not kind.computes:
                forward, sends = kind.value[1] == "F", kind.value[0] == "S"
                ends = (action.stage, action.peer) if sends else (action.peer, action.stage)
                node = (forward, *ends, action.sequence, action.slice)
                meetings.setdefault(node, []).append((rank, sends))
            parts = [kind]
            if kind is Kind.FULL_BACKWARD:
                parts = [Kind.BACKWARD, Kind.WEIGHT]
            for part in parts if kind.computes else ():
                if action.on(part) in nodes:
                    return False
                nodes[action.on(part)] = node
                if part is not Kind.RECOMPUTE and wanted.pop(action.on(part), None) is None:
                    return False
            after.setdefault(node, set())
            if before is not None:
                after[before].add(node)
            before = node
    if wanted:
        return False
    if not meetings:  # compute actions alone wait for one another over ranks
        for action, node in nodes.items():
            for needed in schedule.needs(action):
                if nodes[needed] != node:
                    after[nodes[needed]].add(node)
            if action.kind is Kind.BACKWARD and action.on(Kind.RECOMPUTE) in nodes:
                after[nodes[action.on(Kind.RECOMPUTE)]].add(node)
        return acyclic(after)
    expected = set()
    for source, target in schedule.edges:
        if schedule.placement[source] != schedule.placement[target]:
            for sequence, count in enumerate(schedule.num_slices):
                for piece in range(count):
                    expected.add((True, source, target, sequence, piece))
                    expected.add((False, target, source, sequence, piece))
    if set(meetings) != expected:
        return False
    for (_, first, second, *_), who in meetings.items():
        ranks = [(schedule.placement[first], True), (schedule.placement[second], False)]
        if sorted(who) != sorted(ranks):
            return False
    for action, node in nodes.items():
        for needed in schedule.needs(action):
            if schedule.placement[needed.stage] != schedule.placement[action.stage]:
                forward = action.kind is Kind.FORWARD
                message = (forward, needed.stage, action.stage, action.sequence, action.slice)
                after[nodes[needed]].add(message)
                after[message].add(node)
            elif nodes[needed] != node:
                after[nodes[needed]].add(node)
        if action.kind is Kind.BACKWARD and action.on(Kind.RECOMPUTE) in nodes:
            after[nodes[action.on(Kind.RECOMPUTE)]].add(node)
    return acyclic(after)


def acyclic(after: dict) -> bool:
    waits = dict.fromkeys(after, 0)
    for followers in after.values():
        for node in followers:
            waits[node] += 1
    ready = [node for node, count in waits.items() if not count]
    done = 0
    while ready:
        done += 1
        for node in after[ready.pop()]:
            waits[node] -= 1
            if not waits[node]:
                ready.append(node)
    return done == len(after)


def in_channel_order(schedule: Schedule) -> bool:
    """Whether every pair of ranks receives in the order of sending, each way."""
    sent: dict[tuple[int, int], list[tuple]] = {}
    received: dict[tuple[int, int], list[tuple]] = {}
    for rank, program in enumerate(schedule.programs):
        for action in program:
            if action.kind.computes:
                continue
            far = schedule.placement[action.peer]
            way, sends = action.kind.value[1], action.kind.value[0] == "S"
            ends = (action.stage, action.peer) if sends else (action.peer, action.stage)
            message = (way, *ends, action.sequence, action.slice)
            where = (rank, far) if sends else (far, rank)
            (sent if sends else received).setdefault(where, []).append(message)
    return sent == received


def passes(schedule: Schedule) -> bool:
    try:
        check_schedule(schedule)
    except ValueError:
        return False
    return True


def disagreements(seeds: Iterable[int]) -> tuple[int, list[Schedule]]:
    """How many changed random programs were looked at, and those that ``check_schedule`` judges
    otherwise than ``sound``."""
    count, found = 0, []
    for seed in seeds:
        rng = random.Random(seed)
        lowered = rng.random() < 0.7
        schedule = random_schedule(rng, lowered=lowered, max_sequences=2, max_slices=3)
        changes = [mutant(rng, schedule) for _ in range(12)]
        for changed in [schedule, *filter(None, changes)]:
            count += 1
            if passes(changed) != (sound(changed) and in_channel_order(changed)):
                found.append(changed)
        if not sound(schedule):
            found.append(schedule)
    return count, found
