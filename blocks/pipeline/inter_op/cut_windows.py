"""``CutWindows``: how far stages reach that keep to memory and a cap. Needs numpy, no torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget
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
        able: which shapes a stage may have.
    """

    def __init__(
        self,
        sums: LayerSums,
        schedule: str,
        num_microbatches: int,
        caps: Sequence[int | float],
        able: Sequence[bool],
    ) -> None:
        import numpy as np

        self.flow, self.count, self.num_layers = FLOWS[schedule], num_microbatches, sums.num_layers
        self.schedule, self.shape_caps = schedule, caps
        assert not self.flow.follows_depth, "stages hold as much in every plan"
        exists = np.isfinite(sums.layers["forward_s"])
        pairs = np.argwhere(exists.any(axis=0) & np.array(able)[:, None])
        sizes = [shape.size for shape in sums.shapes]
        self.rows = tuple(Row(int(m), int(o), sizes[m]) for m, o in pairs)
        shapes, options = pairs.T
        self.caps = np.asarray(caps, float)[shapes]
        exists = exists[:, shapes, options].T
        self.able = last_ends(_upto((~exists).astype(float)), np.array([[0.5]]))
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
        self.transient = np.where(exists, values, 0.0)
        self.transient += self._stage(sums, "transient_bytes", shapes, options)[:, None]
        self._fits: dict[int, Any] = {}

    @classmethod
    def of_several_stages(
        cls,
        sums: LayerSums,
        schedule: str,
        num_microbatches: int,
        caps: Sequence[int | float],
        budget: Budget,
    ) -> "CutWindows":
        """Of stages that leave devices to another one."""
        devices = sum(budget.counts.values())
        fewest = min(shape.size for shape in sums.shapes)
        able = [shape.size <= devices - fewest for shape in sums.shapes]
        return cls(sums, schedule, num_microbatches, caps, able)

    def most_stages(self, max_stages: int, budget: Budget) -> int:
        """That layers and devices are enough for."""
        devices = sum(budget.counts.values())
        fewest = min(row.devices for row in self.rows)
        return min(max_stages, devices // fewest, self.num_layers)

    @staticmethod
    def _stage(sums: LayerSums, name: str, shapes: Any, options: Any) -> Any:
        import numpy as np

        values = sums.stage.get(name)
        return np.zeros(len(shapes)) if values is None else values[shapes, options]

    def seconds(self, forwards: int | float, backwards: int | float) -> tuple[Any, Any]:
        """Sums from the first layer on of so many passes ``[row, bound]``, and what every stage
        adds ``[row]``."""
        late = self.upto["backward_s"] + self.upto["weight_s"]
        alone = self.each["backward_s"] + self.each["weight_s"]
        return (
            forwards * self.upto["forward_s"] + backwards * late,
            forwards * self.each["forward_s"] + backwards * alone,
        )

    def fit(self, to_end: int) -> Any:
        """``[row, first]`` the last bound a stage may end at by memory; ``first`` for none.

        Of what is needed beside the rest, that of the first layer counts.
        """
        import numpy as np

        held = self.flow.in_flight(to_end, to_end, self.count)
        if held in self._fits:
            return self._fits[held]
        upto = self.upto["fixed_bytes"] + held * self.upto["microbatch_bytes"]
        each = self.each["fixed_bytes"] + held * self.each["microbatch_bytes"]
        at = np.minimum(self._ends(upto, self.caps - each, self.transient), self.able)
        self._fits[held] = at
        return at

    def within(self, to_end: int, cap: int | float) -> Any:
        """``fit`` for stages whose wait (``trip_bound``) is at most ``cap``, too."""
        import numpy as np

        kept, rest = self.flow.ahead(to_end, self.count), self.count - 1
        found = self.fit(to_end)
        for forwards, backwards in {(self.count - kept, rest), (rest, self.count - kept)}:
            upto, each = self.seconds(forwards, backwards)
            found = np.minimum(found, self._ends(upto, cap - each))
        return found

    def _ends(self, upto: Any, most: Any, first: Any = 0.0) -> Any:
        """``[row, layer]`` the last bound up to which no more than ``most`` adds up, besides what
        the first layer takes alone."""
        return last_ends(upto, most[:, None] - first)


def last_ends(upto: Any, most: Any) -> Any:
    """The last bounds up to which sums from a layer on are at most so much; the layer for none.

    Args:
        upto: sums of the layers before every bound, ``[row, bound]``, ascending.
        most: for every layer, ``[row, layer]`` or ``[row, 1]``.
    """
    import numpy as np

    room = upto[:, :-1] + most + HAIR * (np.abs(most) + upto[:, -1:])
    pairs = zip(upto, room, strict=True)
    ends = np.stack([np.searchsorted(*pair, side="right") for pair in pairs]) - 1
    return np.maximum(ends, np.arange(room.shape[1]))


def _upto(values: Any) -> Any:
    """``[row, layer]`` to sums of the layers before every bound."""
    import numpy as np

    return np.concatenate([np.zeros((len(values), 1)), values.cumsum(axis=1)], axis=1)
