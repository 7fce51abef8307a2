"""A placement without some of its devices, at once and without a search."""

from collections.abc import Collection

from blocks.sched.placement import Group, Placement
from recipes.place.fleet.admit import admit
from recipes.place.fleet.capacity import Capacity


def repair(placement: Placement, lost: Collection[int], capacity: Capacity) -> Placement:
    """Groups that lost a device are formed anew of what they have left; models that then have no
    replica are put where there is room. Those for which there is none are left out.

    The answer serves, but a search may know a better one.
    """
    broken = [group for group in placement.groups if set(lost) & set(group.devices)]
    whole = [group for group in placement.groups if group not in broken]
    found = Placement(tuple(whole))
    for group in broken:
        left = tuple(device for device in group.devices if device not in lost)
        found = found.beside(Placement(_formed(group, left, found, capacity)))
    for model in placement.models:
        if not found.groups_of(model):
            found = admit(found, model, capacity) or found
    return found


def _formed(
    group: Group, left: tuple[int, ...], rest: Placement, capacity: Capacity
) -> tuple[Group, ...]:
    """One group of the devices that are left, with what fits of its models."""
    models = sorted(group.models, key=lambda model: bool(rest.groups_of(model)))
    for shape in capacity.shapes(models, len(left)):
        made = Group(left[: shape.num_devices], shape)
        for model in models:
            roomy = made.hosting(model, group.kv_tokens_of(model))
            made = roomy if capacity.fits(roomy) else capacity.with_least(made, model) or made
        if made.models:
            return (made,)
    return ()
