"""Shapes of the submeshes stages may have, and where on the cluster they lie. Needs no torch."""

from collections.abc import Sequence
from typing import NamedTuple

from blocks._checks import check, check_count, fail


class SubmeshShape(NamedTuple):
    """Devices of one stage: ``num_hosts`` hosts with ``num_devices`` devices each, all of one kind.

    >>> SubmeshShape(2, 8), SubmeshShape(1, 4, "h100").size
    (2x8, 4)
    """

    num_hosts: int
    num_devices: int
    kind: str = ""

    @property
    def size(self) -> int:
        """Devices."""
        return self.num_hosts * self.num_devices

    def __repr__(self) -> str:
        kind = f" {self.kind}" if self.kind else ""
        return f"{self.num_hosts}x{self.num_devices}{kind}"


def submeshes(
    num_hosts: int,
    devices_per_host: int,
    *,
    kinds: Sequence[str] = (),
    only_powers_of_two: bool = False,
) -> tuple[SubmeshShape, ...]:
    """Shapes with which every choice of as many devices as there are can be laid out.

    On one host a power of two that divides the devices of a host, or all of them; of several hosts
    always all devices. Any such shapes whose devices add up to no more than those of their kind
    have a place, see ``cover``.

    Args:
        num_hosts: hosts of the cluster.
        devices_per_host: devices of each.
        kinds: kind of every host where there are several; a submesh stays within one kind.
        only_powers_of_two: of the hosts of a shape, too; fewer shapes for large clusters.

    Reference: Zheng et al. 2022, Alpa, section 5.2.

    >>> submeshes(3, 4)
    (1x1, 1x2, 1x4, 2x4, 3x4)
    >>> submeshes(3, 2, kinds=("a100", "h100", "h100"))
    (1x1 a100, 1x2 a100, 1x1 h100, 1x2 h100, 2x2 h100)
    """
    found = []
    for kind, hosts in hosts_by_kind(num_hosts, devices_per_host, kinds).items():
        pieces = [1]
        while devices_per_host % (2 * pieces[-1]) == 0:
            pieces.append(2 * pieces[-1])
        if pieces[-1] != devices_per_host:
            pieces.append(devices_per_host)
        found += [SubmeshShape(1, size, kind) for size in pieces]
        for count in range(2, len(hosts) + 1):
            if not only_powers_of_two or count & (count - 1) == 0 or count == len(hosts):
                found.append(SubmeshShape(count, devices_per_host, kind))
    return tuple(found)


def hosts_by_kind(
    num_hosts: int, devices_per_host: int, kinds: Sequence[str] = ()
) -> dict[str, list[int]]:
    """Hosts of every kind, ascending; all of the kind ``""`` where none are named.

    Raises:
        ValueError: another number of kinds than of hosts.
    """
    check_count("num_hosts", num_hosts)
    check_count("devices_per_host", devices_per_host)
    check(len(kinds) in (0, num_hosts), "kinds", f"one for each of {num_hosts} hosts", len(kinds))
    found: dict[str, list[int]] = {}
    for host in range(num_hosts):
        found.setdefault(kinds[host] if kinds else "", []).append(host)
    return found


def cover(
    shapes: Sequence[SubmeshShape],
    num_hosts: int,
    devices_per_host: int,
    *,
    kinds: Sequence[str] = (),
) -> tuple[tuple[int, ...], ...]:
    """Devices of every submesh; device ``d`` of host ``h`` is ``h * devices_per_host + d``.

    In the order given where every submesh then begins at a multiple of its size, which keeps
    neighbours together; else the largest first: whole hosts are taken whole, and what is left are
    whole hosts, which pieces fill without a gap because each size divides the next larger one.

    Raises:
        ValueError: a shape that ``submeshes`` does not have; more devices than there are of a kind.

    Reference: Zheng et al. 2022, Alpa, appendix A.

    >>> cover([SubmeshShape(1, 2), SubmeshShape(1, 1), SubmeshShape(1, 1)], 1, 4)
    ((0, 1), (2,), (3,))
    >>> cover([SubmeshShape(1, 2), SubmeshShape(2, 4), SubmeshShape(1, 2)], 3, 4)
    ((8, 9), (0, 1, 2, 3, 4, 5, 6, 7), (10, 11))
    """
    hosts = hosts_by_kind(num_hosts, devices_per_host, kinds)
    allowed = set(submeshes(num_hosts, devices_per_host, kinds=kinds))
    placed: dict[int, tuple[int, ...]] = {}
    for shape in shapes:
        if shape not in allowed:
            raise fail("submesh", f"one of {sorted(allowed)}", shape)
    for kind, of_kind in hosts.items():
        devices = [h * devices_per_host + d for h in of_kind for d in range(devices_per_host)]
        mine = [index for index, shape in enumerate(shapes) if shape.kind == kind]
        needed = sum(shapes[index].size for index in mine)
        what = "devices of the submeshes" + (f" of kind {kind}" if kind else "")
        check(needed <= len(devices), what, f"at most {len(devices)}", needed)
        starts = _starts(mine, shapes, devices_per_host)
        if starts is None:
            mine.sort(key=lambda index: -shapes[index].size)
            starts = _starts(mine, shapes, devices_per_host)
        assert starts is not None, f"{shapes} were not aligned, largest first"
        for index, start in zip(mine, starts, strict=True):
            placed[index] = tuple(devices[start : start + shapes[index].size])
    return tuple(placed[index] for index in range(len(shapes)))


def _starts(
    order: Sequence[int], shapes: Sequence[SubmeshShape], devices_per_host: int
) -> list[int] | None:
    """First device of each one after another; None where one would begin amid its own size."""
    starts = [0]
    for index in order:
        if starts[-1] % min(shapes[index].size, devices_per_host):
            return None
        starts.append(starts[-1] + shapes[index].size)
    return starts[:-1]
