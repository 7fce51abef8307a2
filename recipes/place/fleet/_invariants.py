"""What must hold of a ``Fleet`` at any time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.place.fleet.fleet import Fleet


def check_fleet(fleet: "Fleet") -> None:
    """Assert the invariants in ``Fleet``'s docstring."""
    fleet.router.check_invariants()
    devices = [device for group in fleet.groups.values() for device in group.devices]
    assert len(devices) == len(set(devices)), f"devices in two groups: {devices}"
    assert all(0 <= device < fleet.num_devices for device in devices)
    for group in fleet.groups.values():
        assert fleet.capacity.fits(group.observed().as_group()), group
    ready = {
        (group.devices, model)
        for group in fleet.groups.values()
        for model, replica in group.replicas.items()
        if replica.state == "ready"
    }
    models = fleet.capacity.profiles
    seats = {(seat.devices, model) for model in models for seat in fleet.router.hosts(model)}
    assert ready == seats, (ready, seats)
