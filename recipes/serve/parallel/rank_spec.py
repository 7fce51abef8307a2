"""``RankSpec``: all a process needs to know to be one rank of a model. Plain data, as JSON too."""

import dataclasses
import json

from blocks._checks import reading
from recipes.serve.parallel.layout import Layout


@dataclasses.dataclass(frozen=True)
class RankSpec:
    """One rank of a group that runs one model.

    rank: which of the ``tp * pp``.
    address: where the engine listens: path of a Unix socket, or ``host:port``.
    key: shared secret that both sides prove to know, hexadecimal.
    rendezvous: where the ranks meet: ``file:///path``, unused so far, or ``tcp://host:port/name``
        of a running torch ``TCPStore``.
    folder: of the model.
    dtype: of weights, None for the checkpoint's. kv_dtype: as in ``EngineConfig``.
    device: ``cpu``, over gloo; ``cuda``, over NCCL. device_index: accelerator on its machine.
    num_blocks, block_size: of the cache; alike on all ranks.
    max_positions: longest sequence; None for the model's own.
    num_threads: of this process, on the CPU. timeout_s: longest wait for another rank.
    """

    rank: int
    tp: int
    pp: int
    address: str
    key: str = dataclasses.field(repr=False)
    rendezvous: str
    folder: str
    num_blocks: int
    block_size: int
    dtype: str | None = None
    kv_dtype: str = "auto"
    device: str = "cpu"
    device_index: int = 0
    max_positions: int | None = None
    num_threads: int = 1
    timeout_s: float = 120.0

    @property
    def layout(self) -> Layout:
        return Layout(self.tp, self.pp)

    def to_json(self) -> str:
        """As text; ``from_json`` reads it back. It holds the key: hand it on in private."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RankSpec":
        """
        Raises:
            ValueError: text that is no such record.
        """
        data = json.loads(text)
        with reading("rank spec", data, cls):
            return cls(**data)
