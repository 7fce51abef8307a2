"""The paged tensors: keys and values of all layers in one allocation, sized from a byte budget."""

import math

import torch
from jaxtyping import Float32, Num
from torch import Tensor

from blocks._checks import check, check_count, fail, is_number
from blocks.kv.copy import copy_blocks, swap_blocks
from blocks.kv.scales import LIMITS, ScaleKind
from blocks.kv.write import CACHE_DTYPES


class KVCache:
    """Keys and values of all layers, cut into blocks.

    Each layer's keys and values are views ``[num_blocks, block_size, num_kv_heads, head_dim]`` of
    one zero-filled allocation, taken from the system at once: what a budget allows is known to fit
    before the first request, and no request pays for page faults. Block 0 is the null block: it
    exists, so that padded tables read valid memory, but is never handed out.

    A quantised cache has scales beside, counted in every budget: `key_scale` and `value_scale` go
    with `key` and `value` wherever those are written or read.

    Args:
        num_blocks: blocks per layer, the null block included; at least 2.
        num_layers, block_size, num_kv_heads, head_dim: sizes.
        dtype: of keys and values: float32, float16, bfloat16, or quantised float8_e4m3fn or int8.
        scales: what a scale of a quantised cache belongs to (see `blocks.kv.scales`): ``"tensor"``,
            ``"head"`` and ``"block"`` start at 1 and are the caller's to fill; ``"token"``, which
            None stands for, is filled by writes.
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
        scales: ScaleKind | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        hint = "one block is the null block"
        check_count("num_blocks", num_blocks, hint, least=2)
        _check_sizes(num_layers, num_kv_heads, head_dim)
        check_count("block_size", block_size)
        _check_dtype(dtype)
        self.scale_kind: ScaleKind | None = _scale_kind(scales, dtype)
        shape = (num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim)
        self.storage = _zeros(shape, dtype, device)
        self.scales: Tensor | None = None
        if self.scale_kind is not None:
            found = _scale_shape(self.scale_kind, num_blocks, block_size, num_kv_heads)
            self.scales = _zeros((num_layers, 2, *found), torch.float32, device)
            if self.scale_kind != "token":
                self.scales.fill_(1.0)
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
        scales: ScaleKind | None = None,
        device: torch.device | str = "cpu",
    ) -> "KVCache":
        """As many blocks as ``cache_bytes`` hold, the null block among them.

        Raises:
            ValueError: not even the null block and one usable block fit.
        """
        _check_sizes(num_layers, num_kv_heads, head_dim)
        check_count("block_size", block_size)
        _check_dtype(dtype)
        kind = _scale_kind(scales, dtype)
        token_bytes = bytes_per_token(num_layers, num_kv_heads, head_dim, dtype, kind)
        per_layer = 2 * 4 * num_layers
        block_bytes = block_size * token_bytes + per_layer * num_kv_heads * (kind == "block")
        shared = {"tensor": per_layer, "head": per_layer * num_kv_heads}.get(kind or "", 0)
        least = 2 * block_bytes + shared
        if is_number(cache_bytes) and cache_bytes < least:
            raise fail(
                "cache_bytes",
                f"at least {least} ({_size(least)}: the null block and one "
                f"usable block of {block_size} tokens x {token_bytes} bytes)",
                f"{cache_bytes} ({_size(max(cache_bytes, 0))})",
                "raise the budget, or take a smaller block_size or dtype",
            )
        check_count("cache_bytes", cache_bytes)
        cache = cls(
            (cache_bytes - shared) // block_bytes,
            num_layers=num_layers,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            scales=scales,
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

    def key(self, layer: int) -> Num[Tensor, "num_blocks block_size num_kv_heads head_dim"]:
        """Keys of one layer; a view."""
        return self.storage[layer, 0]

    def value(self, layer: int) -> Num[Tensor, "num_blocks block_size num_kv_heads head_dim"]:
        """Values of one layer; a view."""
        return self.storage[layer, 1]

    def key_scale(self, layer: int) -> Float32[Tensor, "..."] | None:
        """Scales of one layer's keys, a view to be passed as ``k_scale``; None if not quantised."""
        return None if self.scales is None else self.scales[layer, 0]

    def value_scale(self, layer: int) -> Float32[Tensor, "..."] | None:
        """Scales of one layer's values, a view to be passed as ``v_scale``; None likewise."""
        return None if self.scales is None else self.scales[layer, 1]

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks (source, target) in all layers, with the result of doing so in order.

        Scales that belong to blocks or tokens go with them.
        """
        if pairs:
            copy_blocks(self.storage.flatten(0, 1), pairs, scales=self._moving_scales())

    def swap_blocks(self, target: "KVCache", pairs: list[tuple[int, int]]) -> None:
        """Copy blocks (own, target's) into another cache of the same sizes; see `swap_blocks`.

        Raises:
            ValueError, TypeError: caches that differ in more than blocks and device; scales of the
                whole tensor or of heads that differ, since they do not move (looked at on the CPU
                only).
        """
        kind, theirs = self.scale_kind, target.scale_kind
        check(kind == theirs, "scales", f"{kind} in both caches", theirs)
        ours = self._moving_scales()
        if self.scales is not None and target.scales is not None and ours is None:
            on_cpu = self.scales.device.type == target.scales.device.type == "cpu"
            same = not on_cpu or torch.equal(self.scales, target.scales)
            check(same, "scales", "the same in both caches", "others", "copy them first")
        if pairs:
            swap_blocks(
                self.storage.flatten(0, 1),
                target.storage.flatten(0, 1),
                pairs,
                source_scales=ours,
                target_scales=target._moving_scales(),
            )

    def _moving_scales(self) -> Tensor | None:
        """Scales that belong to blocks, one plane for each of the storage's."""
        if self.scales is None or self.scale_kind not in ("block", "token"):
            return None
        return self.scales.flatten(0, 1)

    def explain(self) -> str:
        """How many tokens fit and why, in two or three lines with the numbers."""
        layers, _, blocks, block_size, heads, head_dim = self.storage.shape
        itemsize = self.storage.element_size()
        dtype, kind = self.storage.dtype, self.scale_kind
        token_bytes = bytes_per_token(layers, heads, head_dim, dtype, kind)
        used = self.storage.nbytes + (0 if self.scales is None else self.scales.nbytes)
        name = str(dtype).removeprefix("torch.")
        beside = " and a scale of 4 bytes each" if kind == "token" else ""
        lines = [
            f"{self.num_tokens} tokens fit: {blocks - 1} blocks x {block_size} tokens "
            f"(and 1 null block)",
            f"one token takes {token_bytes} bytes: key and value 2 x {layers} layers x {heads} "
            f"heads x {head_dim} x {itemsize} bytes ({name}){beside}",
        ]
        if self.scales is not None and kind != "token":
            lines[1] += f"; one scale per {kind}, {self.scales.nbytes} bytes in all"
        if self.cache_bytes is None:
            lines.append(f"the cache takes {used} bytes ({_size(used)})")
        else:
            rest = self.cache_bytes - used
            block_bytes = block_size * token_bytes
            block_bytes += 8 * layers * heads * (kind == "block")
            lines.append(
                f"budget {self.cache_bytes} bytes ({_size(self.cache_bytes)}) // "
                f"{block_bytes} bytes a block = {blocks} blocks, {rest} bytes unused"
            )
        return "\n".join(lines)


def bytes_per_token(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    scales: ScaleKind | None = None,
) -> int:
    """Cache bytes of one token: a key and a value in every layer, with scales per token if so.

    >>> bytes_per_token(40, 40, 128, torch.float16)  # OPT-13B: 800 KiB
    819200
    >>> bytes_per_token(40, 40, 128, torch.float8_e4m3fn, "token")
    422400
    """
    _check_sizes(num_layers, num_kv_heads, head_dim)
    head_bytes = head_dim * dtype.itemsize + 4 * (scales == "token")
    return 2 * num_layers * num_kv_heads * head_bytes


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in CACHE_DTYPES:
        raise TypeError(f"dtype: expected one of {CACHE_DTYPES}, got {dtype!r}")


def _scale_kind(scales: str | None, dtype: torch.dtype) -> ScaleKind | None:
    if dtype not in LIMITS:
        check(scales is None, "scales", f"None with a cache of {dtype}", scales)
        return None
    kinds: dict[str | None, ScaleKind] = {
        "tensor": "tensor", "head": "head", "block": "block", "token": "token", None: "token"
    }  # fmt: skip
    check(scales in kinds, "scales", f"one of {list(kinds)}", repr(scales))
    return kinds[scales]


def _scale_shape(
    kind: ScaleKind, num_blocks: int, block_size: int, num_kv_heads: int
) -> tuple[int, ...]:
    return {
        "tensor": (),
        "head": (num_kv_heads,),
        "block": (num_blocks, num_kv_heads),
        "token": (num_blocks, block_size, num_kv_heads),
    }[kind]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    try:
        return torch.zeros(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch's own message has neither advice nor a readable size
        size = _size(math.prod(shape) * dtype.itemsize)
        raise MemoryError(
            f"KV cache: expected {size} of free memory on {device}, could not get it; "
            f"lower the budget ({str(error).splitlines()[0]})"
        ) from error


def _check_sizes(num_layers: int, num_kv_heads: int, head_dim: int) -> None:
    check_count("num_layers", num_layers)
    check_count("num_kv_heads", num_kv_heads)
    check_count("head_dim", head_dim)


def _size(num_bytes: int) -> str:
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"
