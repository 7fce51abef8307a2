"""``Budget``: how many devices of every kind are used, as one index. Needs numpy, no torch."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from blocks._checks import check
from blocks.pipeline.inter_op.submesh import SubmeshShape, hosts_by_kind


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
    """Every number of used devices of every kind that shapes can add up to, numbered.

    Used devices count in steps of the greatest common divisor of each kind's shapes.

    shapes, counts: the shapes and the devices of every kind.
    whole: whether a plan uses all devices.
    num_states: of them; one more stands for "impossible".
    full: the state in which all devices are used; None where shapes cannot add up to that.
    before: for every shape ``[num_states]`` the state before it was taken.
    devices: ``[num_states, kind]``.
    """

    shapes: tuple[SubmeshShape, ...]
    counts: dict[str, int]
    whole: bool
    num_states: int
    full: int | None
    before: tuple[Any, ...]
    devices: Any

    @property
    def ends(self) -> Any:
        """Indices of states a plan may end in."""
        import numpy as np

        if not self.whole:
            return np.arange(self.num_states)
        return np.asarray([] if self.full is None else [self.full], int)

    def is_enough(self, shapes: Iterable[int]) -> bool:
        """Whether there are the devices for stages of these shapes (by their indices), kind by
        kind, and whether they are all used where they must be."""
        left = dict(self.counts)
        for m in shapes:
            left[self.shapes[m].kind] -= self.shapes[m].size
        return all(count == 0 if self.whole else count >= 0 for count in left.values())

    def at_most(self, values: Any) -> Any:
        """Of values for exactly so many devices ``[..., u]``, those for as many or fewer where a
        plan may leave devices out."""
        import numpy as np

        if self.whole:
            return values
        sizes = [len(np.unique(self.devices[:, kind])) for kind in range(len(self.counts))]
        found = values[..., :-1].reshape(*values.shape[:-1], *sizes[::-1])
        for axis in range(1, len(sizes) + 1):
            found = np.minimum.accumulate(found, axis=-axis)
        return np.concatenate([found.reshape(*values.shape[:-1], -1), values[..., -1:]], axis=-1)

    def only(self, able: Sequence[bool]) -> tuple["Budget", Any]:
        """The budget without the shapes that are not ``able``, and its states' numbers here."""
        import numpy as np

        if all(able):
            return self, np.arange(self.num_states)
        fewer = _budget(self.shapes, self.counts, able, whole=self.whole)
        known = {tuple(used): state for state, used in enumerate(self.devices.tolist())}
        return fewer, np.asarray([known[tuple(used)] for used in fewer.devices.tolist()], int)


def budget(
    shapes: Sequence[SubmeshShape],
    num_hosts: int,
    devices_per_host: int,
    kinds: Sequence[str] = (),
    *,
    whole: bool = True,
) -> Budget:
    """The budget of a cluster."""
    hosts = hosts_by_kind(num_hosts, devices_per_host, kinds)
    counts = {kind: len(of_kind) * devices_per_host for kind, of_kind in hosts.items()}
    for shape in shapes:
        check(shape.kind in counts, f"kind of {shape}", f"one of {sorted(counts)}", shape.kind)
    return _budget(shapes, counts, [True] * len(shapes), whole=whole)


def _budget(
    shapes: Sequence[SubmeshShape], counts: dict[str, int], able: Sequence[bool], *, whole: bool
) -> Budget:
    import numpy as np

    strides, sizes, units = {}, {}, {}
    num_states, reachable = 1, True
    used_shapes = [shape for shape, can in zip(shapes, able, strict=True) if can]
    for kind, count in counts.items():
        unit = math.gcd(*(shape.size for shape in used_shapes if shape.kind == kind)) or count
        none = all(shape.kind != kind for shape in used_shapes)
        reachable = reachable and count % unit == 0 and not none
        strides[kind], units[kind] = num_states, unit
        sizes[kind] = 1 if none else count // unit + 1
        num_states *= sizes[kind]
    every = np.arange(num_states)
    columns = [every // strides[kind] % sizes[kind] * units[kind] for kind in counts]
    before = []
    for shape, can in zip(shapes, able, strict=True):
        if not can:
            before.append(np.full(num_states, num_states))
            continue
        steps = shape.size // units[shape.kind]
        used = every // strides[shape.kind] % sizes[shape.kind]
        before.append(np.where(used >= steps, every - steps * strides[shape.kind], num_states))
    full = num_states - 1 if reachable else None
    devices = np.stack(columns, axis=1)
    return Budget(tuple(shapes), counts, whole, num_states, full, tuple(before), devices)
