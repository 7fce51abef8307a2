"""What a group reserves of a Ray cluster: a bundle a device, on the node the device lies on."""

import dataclasses

from blocks._checks import check
from recipes.place.ray.seats import Seats

NODE_LABEL = "ray.io/node-id"
"""A label that Ray gives every node."""


@dataclasses.dataclass(frozen=True)
class Bundles:
    """The arguments of a Ray placement group.

    resources: of every bundle; bundle ``r`` is for rank ``r``.
    strategy: ``STRICT_PACK`` or ``PACK``.
    labels: of the node that each bundle must be on.
    """

    resources: tuple[dict[str, float], ...]
    strategy: str
    labels: tuple[dict[str, str], ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Where they are, each node once."""
        return tuple(dict.fromkeys(label[NODE_LABEL] for label in self.labels))


def bundles_of(
    devices: tuple[int, ...], seats: Seats, *, device: str = "cpu", cpus: float = 1.0
) -> Bundles:
    """A bundle for every device of a group, in the order of its ranks.

    The placement has chosen the devices, so nothing is left for Ray to choose: every bundle names
    its node by label. The strategy says the rest: ``STRICT_PACK`` where the group lies on one node,
    so that Ray gives it all of its devices there or none; ``PACK`` where it spans nodes.
    ``SPREAD`` is never asked for: ranks apart would only wait longer for one another.

    Args:
        device: ``cpu``, where a device is ``cpus`` processors, or ``cuda``, where it is a GPU and
            as many processors.

    Raises:
        ValueError: a device that lies on no node.

    >>> seats = Seats().after({"a": 2, "b": 2})
    >>> bundles_of((2, 3), seats).strategy, bundles_of((1, 2), seats).strategy
    ('STRICT_PACK', 'PACK')
    """
    nodes = [seats.node_of(number) for number in devices]
    absent = [number for number, node in zip(devices, nodes, strict=True) if node is None]
    check(not absent, "devices", "some that lie on nodes of the cluster", f"{absent}, which do not")
    whole = {"CPU": cpus} if device == "cpu" else {"GPU": 1.0, "CPU": cpus}
    return Bundles(
        tuple(dict(whole) for _ in devices),
        "STRICT_PACK" if len(set(nodes)) == 1 else "PACK",
        tuple({NODE_LABEL: node or ""} for node in nodes),
    )
