"""Device numbers for the groups of a placement, so that groups stay within nodes."""

import collections
from collections.abc import Sequence

from blocks._checks import check
from blocks.sched.placement import Group, Placement


def deal(placement: Placement, devices: Sequence[int], devices_per_node: int) -> Placement:
    """The same groups on the devices given: larger groups first, each on the node with the least
    room that has enough; over several nodes only where none has.

    >>> from blocks.sched.profile import Configuration
    >>> one, two = Configuration(1, 1), Configuration(2, 1)
    >>> drawn = Placement((Group((0,), one), Group((1, 2), two)))
    >>> [group.devices for group in deal(drawn, [0, 2, 3], 2).groups]
    [(0,), (2, 3)]

    Raises:
        ValueError: too few devices.
    """
    wanted = sum(group.configuration.num_devices for group in placement.groups)
    check(wanted <= len(devices), "devices", f"at least {wanted}", len(devices))
    nodes: dict[int, list[int]] = collections.defaultdict(list)
    for device in sorted(devices):
        nodes[device // devices_per_node].append(device)
    dealt: dict[int, tuple[int, ...]] = {}
    order = sorted(
        range(len(placement.groups)),
        key=lambda at: -placement.groups[at].configuration.num_devices,
    )
    for at in order:
        count = placement.groups[at].configuration.num_devices
        enough = [node for node in nodes.values() if len(node) >= count]
        taken: list[int] = []
        if enough:
            node = min(enough, key=len)
            taken = [node.pop(0) for _ in range(count)]
        else:
            for node in sorted(nodes.values(), key=len, reverse=True):
                while node and len(taken) < count:
                    taken.append(node.pop(0))
        dealt[at] = tuple(sorted(taken))
    groups: list[Group] = [g._replace(devices=dealt[at]) for at, g in enumerate(placement.groups)]
    return Placement(tuple(groups))
