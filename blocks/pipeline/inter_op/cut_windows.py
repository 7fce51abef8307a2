"""``CutWindows``: how far stages reach that keep to memory and a cap. Needs numpy, no torch."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from blocks.pipeline.inter_op.flow import FLOWS
from blocks.pipeline.inter_op.layer_sums import LayerSums

HAIR = 1e-12
"""Sums of another order differ by less."""


class Row(NamedTuple):
    """One way to run stages: indices of its shape and option, and the shape's devices."""

    shape: int
    option: int
    devices: int


class CutWindows:
    """Stages of ``LayerSums`` by where they begin, every cut allowed.

    What a stage takes and holds grows with its layers, so of one way to run it those that keep to
    a limit and begin at a layer end no later than some layer: a window of ends for every
    beginning, and the windows move on with the beginning. Whatever is summed over layers is the
    difference of two sums from the first layer on. So neither needs a table of beginnings and
    ends.

    Args:
        sums: costs of layers.
        schedule: a name of ``FLOWS`` whose memory does not depend on the number of all stages.
        num_microbatches: of a step.
        caps: bytes of a device, for every shape.
    """

    def __init__(
        self,
        sums: LayerSums,
        schedule: str,
        num_microbatches: int,
        caps: Sequence[int | float],
    ) -> None:
        import numpy as np

        self.flow, self.count, self.num_layers = FLOWS[schedule], num_microbatches, sums.num_layers
        assert not self.flow.follows_depth, "stages hold as much in every plan"
        exists = np.isfinite(sums.layers["forward_s"])
        pairs = np.argwhere(exists.any(axis=0))
        sizes = [shape.size for shape in sums.shapes]
        self.rows = tuple(Row(int(m), int(o), sizes[m]) for m, o in pairs)
        shapes, options = pairs.T
        self.caps = np.asarray(caps, float)[shapes]
        exists = exists[:, shapes, options].T
        self.cannot = _upto((~exists).astype(float))
        self.upto: dict[str, Any] = {}
        self.each: dict[str, Any] = {}
        for name in ("forward_s", "backward_s", "weight_s", "once_s", "fixed_bytes",
                     "microbatch_bytes"):  # fmt: skip
            found = sums.layers.get(name)
            values = 0.0 * exists if found is None else found[:, shapes, options].T
            self.upto[name] = _upto(np.where(exists, values, 0.0))
            self.each[name] = self._stage(sums, name, shapes, options)
        found = sums.layers.get("transient_bytes")
        values = 0.0 * exists if found is None else found[:, shapes, options].T
        self.transient = _largest(np.where(exists, values, 0.0))
        self.each["transient_bytes"] = self._stage(sums, "transient_bytes", shapes, options)
        self._fits: dict[int, Any] = {}

    @staticmethod
    def _stage(sums: LayerSums, name: str, shapes: Any, options: Any) -> Any:
        import numpy as np

        values = sums.stage.get(name)
        return np.zeros(len(shapes)) if values is None else values[shapes, options]

    def seconds(self, forwards: float, backwards: float) -> tuple[Any, Any]:
        """Sums from the first layer on of so many passes ``[row, bound]``, and what every stage
        adds ``[row]``."""
        late = self.upto["backward_s"] + self.upto["weight_s"]
        alone = self.each["backward_s"] + self.each["weight_s"]
        return (
            forwards * self.upto["forward_s"] + backwards * late,
            forwards * self.each["forward_s"] + backwards * alone,
        )

    def fit(self, to_end: int) -> Any:
        """``[row, first]`` the last bound a stage may end at by memory; ``first`` for none."""
        import numpy as np

        held = self.flow.in_flight(to_end, to_end, self.count)
        if held in self._fits:
            return self._fits[held]
        upto = self.upto["fixed_bytes"] + held * self.upto["microbatch_bytes"]
        room = self.caps - self.each["fixed_bytes"] - held * self.each["microbatch_bytes"]
        room = room - self.each["transient_bytes"]
        room = (room + HAIR * np.abs(room))[:, None] + upto[:, :-1]
        room = room + HAIR * upto[:, -1:]
        able = self.cannot[:, :-1]
        num_rows, num_layers = able.shape
        at = np.broadcast_to(np.arange(num_layers), able.shape).copy()
        largest = np.zeros(able.shape)
        row = np.arange(num_rows)[:, None]
        for level in reversed(range(len(self.transient))):
            then = at + 2**level
            inside = np.minimum(then, num_layers)
            most = np.maximum(largest, self.transient[level][row, np.minimum(at, num_layers - 1)])
            good = (then <= num_layers) & (upto[row, inside] + most <= room)
            good &= self.cannot[row, inside] == able
            at, largest = np.where(good, then, at), np.where(good, most, largest)
        self._fits[held] = at
        return at

    def within(self, to_end: int, cap: float) -> Any:
        """``fit`` for stages whose wait (``trip_bound``) is at most ``cap``, too."""
        import numpy as np

        kept, rest = self.flow.ahead(to_end, self.count), self.count - 1
        found = self.fit(to_end)
        for forwards, backwards in {(self.count - kept, rest), (rest, self.count - kept)}:
            upto, each = self.seconds(forwards, backwards)
            most = upto[:, :-1] + (cap - each)[:, None]
            most = most + HAIR * (np.abs(cap) + upto[:, -1:])
            ends = [np.searchsorted(*pair, side="right") - 1 for pair in zip(upto, most)]
            found = np.minimum(found, np.stack(ends))
        return np.maximum(found, np.arange(found.shape[1]))


def _upto(values: Any) -> Any:
    """``[row, layer]`` to sums of the layers before every bound."""
    import numpy as np

    return np.concatenate([np.zeros((len(values), 1)), values.cumsum(axis=1)], axis=1)


def _largest(values: Any) -> list[Any]:
    """By ``n`` the largest of ``2**n`` layers from each one on; of fewer at the end."""
    import numpy as np

    found = [values]
    for level in range(1, max(1, math.floor(math.log2(values.shape[1])) + 1)):
        last, half = found[-1], 2 ** (level - 1)
        longer = last.copy()
        longer[:, :-half] = np.maximum(last[:, :-half], last[:, half:])
        found.append(longer)
    return found
