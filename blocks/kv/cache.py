"""The paged tensors: keys and values of all layers in one allocation, sized from a byte budget."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from blocks._checks import check, check_positive, fail
from blocks.kv.copy import copy_blocks
from blocks.kv.write import CACHE_DTYPES


class KVCache:
    """Keys and values of all layers, cut into blocks.

    Each layer's keys and values are views ``[num_blocks, block_size, num_kv_heads, head_dim]`` of
    one zero-filled allocation, taken from the system at once: what a budget allows is known to fit
    before the first request, and no request pays for page faults. Block 0 is the null block: it
    exists, so that padded tables read valid memory, but is never handed out.

    Args:
        num_blocks: blocks per layer, the null block included; at least 2.
        num_layers, block_size, num_kv_heads, head_dim: sizes.
        dtype: of keys and values: float32, float16 or bfloat16.
        device: where they live.

    Raises:
        ValueError, TypeError: sizes or a dtype that make no cache.
        MemoryError: the device does not have that much memory.

    >>> cache = KVCache.from_budget(
    ...     1 << 20, num_layers=2, block_size=16, num_kv_heads=4, head_dim=64, dtype=torch.bfloat16
    ... )
    >>> cache.key(0).shape, cache.num_tokens
    (torch.Size([32, 16, 4, 64]), 496)
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        num_layers: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        hint = "one block is the null block"
        check(num_blocks >= 2, "num_blocks", "at least 2", num_blocks, hint)
        _check_sizes(num_layers, block_size, num_kv_heads, head_dim)
        if dtype not in CACHE_DTYPES:
            raise TypeError(f"dtype: expected one of {CACHE_DTYPES}, got {dtype}")
        shape = (num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim)
        self.storage = _zeros(shape, dtype, device)
        self.cache_bytes: int | None = None

    @classmethod
    def from_budget(
        cls,
        cache_bytes: int,
        *,
        num_layers: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> "KVCache":
        """As many blocks as ``cache_bytes`` hold, the null block among them.

        Raises:
            ValueError: not even the null block and one usable block fit.
        """
        _check_sizes(num_layers, block_size, num_kv_heads, head_dim)
        token_bytes = bytes_per_token(num_layers, num_kv_heads, head_dim, dtype)
        block_bytes = block_size * token_bytes
        if cache_bytes < 2 * block_bytes:
            raise fail(
                "cache_bytes",
                f"at least {2 * block_bytes} ({_size(2 * block_bytes)}: the null block and one "
                f"usable block of {block_size} tokens x {token_bytes} bytes)",
                f"{cache_bytes} ({_size(max(cache_bytes, 0))})",
                "raise the budget, or take a smaller block_size or dtype",
            )
        cache = cls(
            cache_bytes // block_bytes,
            num_layers=num_layers,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
        )
        cache.cache_bytes = cache_bytes
        return cache

    @property
    def num_layers(self) -> int:
        """Layers."""
        return self.storage.shape[0]

    @property
    def num_blocks(self) -> int:
        """Blocks per layer, the null block included."""
        return self.storage.shape[2]

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.storage.shape[3]

    @property
    def num_tokens(self) -> int:
        """Tokens that fit: the slots of all blocks but the null block."""
        return (self.num_blocks - 1) * self.block_size

    def key(self, layer: int) -> Float[Tensor, "num_blocks block_size num_kv_heads head_dim"]:
        """Keys of one layer; a view."""
        return self.storage[layer, 0]

    def value(self, layer: int) -> Float[Tensor, "num_blocks block_size num_kv_heads head_dim"]:
        """Values of one layer; a view."""
        return self.storage[layer, 1]

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks (source, target) in all layers, with the result of doing so in order."""
        if pairs:
            copy_blocks(self.storage.flatten(0, 1), pairs)

    def explain(self) -> str:
        """How many tokens fit and why, in two or three lines with the numbers."""
        layers, _, blocks, block_size, heads, head_dim = self.storage.shape
        itemsize = self.storage.element_size()
        token_bytes = bytes_per_token(layers, heads, head_dim, self.storage.dtype)
        used = blocks * block_size * token_bytes
        name = str(self.storage.dtype).removeprefix("torch.")
        lines = [
            f"{self.num_tokens} tokens fit: {blocks - 1} blocks x {block_size} tokens "
            f"(and 1 null block)",
            f"one token takes {token_bytes} bytes: key and value 2 x {layers} layers x {heads} "
            f"heads x {head_dim} x {itemsize} bytes ({name})",
        ]
        if self.cache_bytes is None:
            lines.append(f"the cache takes {used} bytes ({_size(used)})")
        else:
            rest = self.cache_bytes - used
            lines.append(
                f"budget {self.cache_bytes} bytes ({_size(self.cache_bytes)}) // "
                f"{block_size * token_bytes} bytes a block = {blocks} blocks, {rest} bytes unused"
            )
        return "\n".join(lines)


def bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Cache bytes of one token: a key and a value in every layer.

    >>> bytes_per_token(40, 40, 128, torch.float16)  # OPT-13B: 800 KiB
    819200
    """
    return 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    try:
        return torch.zeros(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch's own message has neither advice nor a readable size
        size = _size(math.prod(shape) * dtype.itemsize)
        raise MemoryError(
            f"KV cache: expected {size} of free memory on {device}, could not get it; "
            f"lower the budget ({str(error).splitlines()[0]})"
        ) from error


def _check_sizes(num_layers: int, block_size: int, num_kv_heads: int, head_dim: int) -> None:
    check_positive("num_layers", num_layers)
    check_positive("block_size", block_size)
    check_positive("num_kv_heads", num_kv_heads)
    check_positive("head_dim", head_dim)


def _size(num_bytes: int) -> str:
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"
