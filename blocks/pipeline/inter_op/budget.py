"""``Budget``: how many devices of every kind are used, as one index. Needs numpy, no torch."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from blocks.pipeline.inter_op.submesh import SubmeshShape, hosts_by_kind


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
    """Every number of used devices of every kind that shapes can add up to, numbered.

    num_states: of them; one more stands for "impossible".
    full: the state in which all devices are used; None where shapes cannot add up to that.
    before: for every shape ``[num_states]`` the state before it was taken.
    whole: whether a plan uses all devices.
    """

    num_states: int
    full: int | None
    before: tuple[Any, ...]
    whole: bool

    @property
    def ends(self) -> Any:
        """Indices of states a plan may end in."""
        import numpy as np

        if not self.whole:
            return np.arange(self.num_states)
        return np.asarray([] if self.full is None else [self.full], int)


def budget(
    shapes: Sequence[SubmeshShape],
    num_hosts: int,
    devices_per_host: int,
    kinds: Sequence[str] = (),
    *,
    whole: bool = True,
) -> Budget:
    """The budget of a cluster, in steps of the greatest common divisor of each kind's shapes."""
    import numpy as np

    hosts = hosts_by_kind(num_hosts, devices_per_host, kinds)
    strides, sizes, units = {}, {}, {}
    num_states, reachable = 1, True
    for kind, of_kind in hosts.items():
        count = len(of_kind) * devices_per_host
        unit = math.gcd(*(shape.size for shape in shapes if shape.kind == kind)) or count
        reachable = reachable and count % unit == 0
        strides[kind], units[kind] = num_states, unit
        sizes[kind] = count // unit + 1
        num_states *= sizes[kind]
    every = np.arange(num_states)
    before = []
    for shape in shapes:
        steps = shape.size // units[shape.kind]
        used = every // strides[shape.kind] % sizes[shape.kind]
        before.append(np.where(used >= steps, every - steps * strides[shape.kind], num_states))
    full = num_states - 1 if reachable else None
    return Budget(num_states, full, tuple(before), whole)
