"""What a replica takes of every device, before anything of it is read."""

import math

import torch

from blocks.kv import bytes_per_token
from recipes.model import ModelConfig
from recipes.model.part import DecoderPart
from recipes.model.tensor_parallel_cuts import tensor_parallel_cuts
from recipes.place.group.spec import GroupSpec
from recipes.serve.parallel.cache_size import cache_fields
from recipes.serve.parallel.layout import Layout


def kv_bytes(model: ModelConfig, spec: GroupSpec, kv_tokens: int) -> int:
    """Bytes of each rank's cache that hold the whole blocks of ``kv_tokens``, and the null block.

    All ranks have as many blocks; the bytes are those of the rank whose blocks are largest.
    """
    return (kv_tokens // spec.block_size + 1) * max(block_bytes(model, spec))


def block_bytes(model: ModelConfig, spec: GroupSpec) -> list[int]:
    """Of a cache block, on every rank."""
    layout, dtype = Layout(spec.tp, spec.pp), weight_dtype(model, spec)
    return [
        spec.block_size * bytes_per_token(**cache_fields(model, layout, rank, spec.kv_dtype, dtype))
        for rank in range(layout.num_ranks)
    ]


def device_bytes(model: ModelConfig, spec: GroupSpec, kv_tokens: int) -> tuple[int, ...]:
    """Weights and cache of every rank [bytes]."""
    num_blocks = kv_tokens // spec.block_size + 1
    pairs = zip(weight_bytes(model, spec), block_bytes(model, spec), strict=True)
    return tuple(weights + num_blocks * block for weights, block in pairs)


def weight_bytes(model: ModelConfig, spec: GroupSpec) -> list[int]:
    """Parameters of every rank."""
    layout, dtype = Layout(spec.tp, spec.pp), weight_dtype(model, spec)
    cuts = tensor_parallel_cuts(model, spec.tp, vocabulary=True) if spec.tp > 1 else {}
    found = []
    for stage, layers in enumerate(layout.layers(model)):
        part = DecoderPart(
            model, layers, stage=stage, num_stages=spec.pp, dtype=dtype, device="meta"
        )
        for rank in range(spec.tp):
            num_bytes = 0
            for name, parameter in part.named_parameters():
                shape = list(parameter.shape)
                if name in cuts:
                    shape[cuts[name].dim] = cuts[name].local_size(rank)
                num_bytes += math.prod(shape) * dtype.itemsize
            found.append(num_bytes)
    return found


def weight_dtype(model: ModelConfig, spec: GroupSpec) -> torch.dtype:
    return getattr(torch, spec.dtype or model.dtype)
