"""``CrossMeshPlan``: the messages that take a tensor from one mesh to another. Needs no torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from blocks._checks import check, check_count, reading
from blocks.sharding.cross_mesh.box import Box, num_elements
from blocks.sharding.placement import Run
from blocks.sharding.reshard_plan import Step, plan_reshard
from blocks.sharding.spec import ShardingSpec

Mode = Literal["send_recv", "all_gather", "broadcast"]
"""How ranks that want the same part get it:

send_recv: each from a rank of the source;
all_gather: each an equal share of it, which they then exchange among themselves;
broadcast: the first from a rank of the source, each of the others from the one before, in chunks.
"""


class Transfer(NamedTuple):
    """One message.

    box: the part of the whole tensor that it holds.
    source, target: ranks; alike where a rank of both meshes keeps what it has.
    relayed: whether the sender had it by an earlier message; else it holds it in the source.
    """

    box: Box
    source: int
    target: int
    relayed: bool


@dataclasses.dataclass(frozen=True)
class CrossMeshPlan:
    """How a tensor comes to lie on another mesh.

    shape: of the whole tensor.
    source, target: how it lies before and after. The meshes may share ranks.
    reduced: the source once its sums are taken, on its own mesh, by ``reduction``.
    mode: see ``Mode``.
    transfers: in the order every rank sends and receives its own in. Where the target leaves a
        sum, its first ranks get the tensor and the others hold zeros.
    """

    shape: tuple[int, ...]
    source: ShardingSpec
    target: ShardingSpec
    reduced: ShardingSpec
    mode: Mode
    transfers: tuple[Transfer, ...]

    def __post_init__(self) -> None:
        for size in self.shape:
            if size:
                check_count("size of a dim", size)
        check(self.mode in get_args(Mode), "mode", get_args(Mode), self.mode)
        check(not self.reduced.has_partial, "reduced", "no sums", str(self.reduced))

    @property
    def reduction(self) -> tuple[Step, ...]:
        """The collectives on the source mesh that come before the messages."""
        return plan_reshard(self.source, self.reduced)

    def bytes_sent(self, itemsize: int) -> dict[int, int]:
        """For every rank that sends messages, their bytes; without the reduction."""
        return self._bytes(itemsize, [t for t in self.transfers if t.source != t.target])

    def cross_bytes(self, itemsize: int) -> int:
        """Bytes that ranks of the source send."""
        first = [t for t in self.transfers if not t.relayed and t.source != t.target]
        return sum(self._bytes(itemsize, first).values())

    def relayed_bytes(self, itemsize: int) -> int:
        """Bytes that ranks of the target send one another."""
        return sum(self._bytes(itemsize, [t for t in self.transfers if t.relayed]).values())

    @staticmethod
    def _bytes(itemsize: int, transfers: list[Transfer]) -> dict[int, int]:
        found: dict[int, int] = {}
        for transfer in transfers:
            size = num_elements(transfer.box) * itemsize
            found[transfer.source] = found.get(transfer.source, 0) + size
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {
            "shape": list(self.shape),
            "source": self.source.to_json(),
            "target": self.target.to_json(),
            "reduced": self.reduced.to_json(),
            "mode": self.mode,
            "transfers": [
                [[list(run) for run in box], source, target, relayed]
                for box, source, target, relayed in self.transfers
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CrossMeshPlan":
        """
        Raises:
            ValueError: data that is no plan.
        """
        with reading("cross-mesh plan", data, cls):
            transfers = tuple(
                Transfer(tuple(Run(*run) for run in box), source, target, relayed)
                for box, source, target, relayed in data["transfers"]
            )
            specs = {n: ShardingSpec.from_json(data[n]) for n in ("source", "target", "reduced")}
            return cls(tuple(data["shape"]), **specs, mode=data["mode"], transfers=transfers)
