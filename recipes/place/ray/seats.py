"""``Seats``: which devices of the cluster lie on which node, while nodes come and go."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Seat:
    """Devices of one machine. node: of Ray, or None while no machine sits there."""

    devices: tuple[int, ...]
    node: str | None


@dataclasses.dataclass(frozen=True)
class Seats:
    """Numbers of devices, which a placement speaks of, and the nodes they lie on.

    Invariants:

    1. The numbers are 0, 1, 2 and so on: every one in one seat, seats in order.
    2. A node sits in one seat at most, and stays in it for as long as it is there.
    3. A node that comes takes the first empty seat with as many devices as it has, so that a
       placement made for the node that went fits the one that came; without one, a seat at the end.

    >>> seats = Seats().after({"a": 2, "b": 2})
    >>> seats.nodes()
    {'a': (0, 1), 'b': (2, 3)}
    >>> seats.after({"b": 2}).lost
    (0, 1)
    >>> seats.after({"b": 2}).after({"b": 2, "c": 2}).nodes()
    {'c': (0, 1), 'b': (2, 3)}
    """

    seats: tuple[Seat, ...] = ()

    def after(self, alive: Mapping[str, int]) -> "Seats":
        """The seats once the nodes are those of ``alive``, with as many devices each.

        A node without devices gets no seat. One whose number of devices has changed has gone, and
        another has come.
        """
        left = {node: count for node, count in alive.items() if count > 0}
        seats = []
        for seat in self.seats:
            stays = seat.node is not None and left.get(seat.node) == len(seat.devices)
            seats.append(Seat(seat.devices, seat.node if stays else None))
            if stays:
                del left[seat.node or ""]
        for node, count in left.items():
            fitting = (
                at
                for at, seat in enumerate(seats)
                if seat.node is None and len(seat.devices) == count
            )
            at = next(fitting, len(seats))
            first = sum(len(seat.devices) for seat in seats)
            devices = tuple(range(first, first + count))
            if at == len(seats):
                seats.append(Seat(devices, node))
            else:
                seats[at] = Seat(seats[at].devices, node)
        return Seats(tuple(seats))

    @property
    def num_devices(self) -> int:
        """Devices that have a number, lost ones included."""
        return sum(len(seat.devices) for seat in self.seats)

    @property
    def lost(self) -> tuple[int, ...]:
        """Devices that lie on no node now."""
        return tuple(device for seat in self.seats if seat.node is None for device in seat.devices)

    def nodes(self) -> dict[str, tuple[int, ...]]:
        """The devices of every node that is there."""
        return {seat.node: seat.devices for seat in self.seats if seat.node is not None}

    def node_of(self, device: int) -> str | None:
        """Where a device lies; None where it is lost or has never been there."""
        for seat in self.seats:
            if device in seat.devices:
                return seat.node
        return None

    def check_invariants(self) -> None:
        devices = [device for seat in self.seats for device in seat.devices]
        assert devices == list(range(len(devices))), devices
        nodes = [seat.node for seat in self.seats if seat.node is not None]
        assert len(set(nodes)) == len(nodes), nodes
