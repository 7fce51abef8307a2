"""``Replica``: a model as a group is asked to host it; ``Loaded``: what came of it."""

import dataclasses

from blocks._checks import check, check_count


@dataclasses.dataclass(frozen=True)
class Replica:
    """A model on a group.

    model: what requests call it. folder: of its weights, where the group's processes can read it.
    kv_tokens: room in its cache for keys and values; whole blocks of it count.
    activation_bytes: of each device while a step of it runs, beside weights and cache.
    """

    model: str
    folder: str
    kv_tokens: int
    activation_bytes: int = 0

    def __post_init__(self) -> None:
        check(self.model != "", "model", "a name", repr(self.model))
        check_count("kv_tokens", self.kv_tokens)
        ok = self.activation_bytes >= 0
        check(ok, "activation_bytes", "0 or more", self.activation_bytes)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model that a group serves now.

    max_model_len: longest prompt plus output [tokens]. vocab_size: width of the logits.
    weight_bytes: of all ranks together. device_bytes: weights and cache, of each device.
    kv_tokens: that fit into the cache. load_s: how long it took.
    """

    max_model_len: int
    vocab_size: int
    weight_bytes: int
    device_bytes: tuple[int, ...]
    kv_tokens: int
    load_s: float
