"""A decoder's layers as one tensor-parallel rank has them: fewer heads, narrower MLPs."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blocks import ops
from blocks._checks import check
from blocks.sharding import (
    Group,
    cut_tensor,
    enter,
    gather_cut,
    leave,
    sum_shared,
    vocab_embedding,
)
from recipes.model.config import ModelConfig
from recipes.model.layers import Attention
from recipes.model.mlp import MLP, GatedMLP
from recipes.model.moe import MixtureMLP
from recipes.model.parts import Linear, Table
from recipes.model.tensor_parallel_cuts import Cuts, kv_heads_of, tensor_parallel_cuts


class ColumnLinear(Linear):
    """This rank's columns of a linear layer; takes what all ranks hold alike, or runs of it."""

    group: Group
    sequence: bool

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(_enter(x, self.group, self.sequence), self.weight, self.bias)


class RowLinear(Linear):
    """The sum over ranks of a linear layer of which each has some inputs; the bias added once."""

    group: Group
    sequence: bool

    def forward(self, x: Tensor) -> Tensor:
        y = _leave(ops.linear(x, self.weight), self.group, self.sequence)
        return y if self.bias is None else y + self.bias


class ParallelMixture(MixtureMLP):
    """A part of every expert; all ranks route alike."""

    group: Group
    sequence: bool

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(_enter(x, self.group, self.sequence))
        return _leave(x, self.group, self.sequence)


class VocabTable(Table):
    """This rank's rows of the embedding; its scores are this rank's columns."""

    group: Group
    vocab_size: int

    def forward(self, index: Tensor) -> Tensor:
        return vocab_embedding(index, self.weight, self.vocab_size, self.group)

    def scores(self, x: Tensor) -> Tensor:
        return ops.linear(enter(x, self.group), self.weight)


def _enter(x: Tensor, group: Group, sequence: bool) -> Tensor:
    return enter(x, group, num_tokens=group.size * x.shape[0] if sequence else None)


def _leave(x: Tensor, group: Group, sequence: bool) -> Tensor:
    return leave(x, group, num_tokens=x.shape[0] if sequence else None)


def tensor_parallel(
    module: nn.Module,
    config: ModelConfig,
    group: Group,
    *,
    vocabulary: bool = False,
    sequence: bool = False,
) -> dict[str, Any]:
    """Turn a decoder, or stages of one, into what a rank of ``group`` holds of it, in place.

    Parameters keep their names and become this rank's part of what they were. After a backward
    call ``sum_shared_gradients``.

    Args:
        module: a ``Decoder``, or any module with its layers under their names.
        config: of the whole decoder.
        vocabulary: cut embedding and head too. ``scores`` then gives this rank's columns, for
            ``blocks.sharding.vocab_cross_entropy``.
        sequence: between the cut layers every rank works on its run of the tokens; the caller cuts
            them before the first layer and joins them behind the last, see ``run_of``.

    Returns:
        The cuts of the module's parameters by name, see ``tensor_parallel_cuts``.

    Raises:
        ValueError: a group that does not divide the heads.
    """
    cuts = tensor_parallel_cuts(config, group.size, vocabulary=vocabulary, sequence=sequence)
    how = {"group": group, "sequence": sequence}
    kv_heads = len(kv_heads_of(config, group.size)[group.rank])
    for part in list(module.modules()):
        if isinstance(part, Attention):
            part.heads = (config.num_heads // group.size, kv_heads, kv_heads)
            _become(part.qkv, ColumnLinear, how)
            _become(part.out, RowLinear, how)
        elif isinstance(part, MLP | GatedMLP):
            _become(part.up if isinstance(part, MLP) else part.gate_up, ColumnLinear, how)
            _become(part.down, RowLinear, how)
        elif isinstance(part, MixtureMLP):
            _become(part, ParallelMixture, how)
    tables = [getattr(module, name, None) for name in ("embed", "head")] if vocabulary else []
    for table in tables:
        if table is not None:
            _become(table, VocabTable, {"group": group, "vocab_size": config.vocab_size})
    here = {name: cuts[name] for name, _ in module.named_parameters() if name in cuts}
    for name, cut in here.items():
        parameter = module.get_parameter(name)
        parameter.data = cut_tensor(parameter.data, cut, group.rank)
    return here


def _become(part: nn.Module, kind: type[nn.Module], attributes: Mapping[str, Any]) -> None:
    """Give a module the forward of a kind that adds no parameters to its own."""
    check(issubclass(kind, type(part)), "module", f"a base of {kind.__name__}", type(part).__name__)
    part.__class__ = kind
    for name, value in attributes.items():
        setattr(part, name, value)


def sum_shared_gradients(
    named: Iterable[tuple[str, nn.Parameter]], cuts: Cuts, group: Group
) -> None:
    """Complete the gradients of what several ranks hold and use differently; once a step.

    Args:
        named: parameters by their names in the whole decoder, in the same order on all ranks.
    """
    for name, parameter in named:
        if name in cuts and parameter.grad is not None:
            sum_shared(parameter.grad, cuts[name], group)


def shard_state(state: Mapping[str, Tensor], cuts: Cuts, rank: int) -> dict[str, Tensor]:
    """What a rank holds of whole tensors by name; those that are not cut are passed on."""
    return {
        name: cut_tensor(tensor, cuts[name], rank) if name in cuts else tensor
        for name, tensor in state.items()
    }


@torch.no_grad()
def gather_state(state: Mapping[str, Tensor], cuts: Cuts, group: Group) -> dict[str, Tensor]:
    """Whole tensors by name, on every rank of the group, from what each holds."""
    return {
        name: gather_cut(tensor, cuts[name], group) if name in cuts else tensor
        for name, tensor in state.items()
    }
