"""``TensorParallelStage``: a decoder stage as one tensor-parallel rank has it."""

from typing import Any

import torch
from torch import Tensor

from blocks.sharding import Group, column_linear, cut_tensor, vocab_cross_entropy
from recipes.model import ModelConfig
from recipes.model.tensor_parallel import tensor_parallel
from recipes.train.model import first_weights
from recipes.train.stage import EMBEDDING, TIED_HEAD, DecoderStage


class TensorParallelStage(DecoderStage):
    """Some heads and a part of every MLP of the layers [first, stop), and a run of the vocabulary.

    All ranks of the group are called alike, take and return the same residual stream, and return
    the same loss. Parameters are named as in the whole stage; ``cuts`` says which part they are.
    """

    def __init__(self, config: ModelConfig, layers: range, group: Group, **options: Any) -> None:
        super().__init__(config, layers, **options)
        self.group = group
        self.cuts = tensor_parallel(self, config, group, vocabulary=True)

    def init(self, seed: int) -> None:
        """This rank's part of the weights a run with that seed begins with."""
        for name, parameter in self.named_parameters():
            key = EMBEDDING if name == TIED_HEAD and self.tied else name
            if name not in self.cuts:
                first_weights(key, parameter, self.config, seed)
                continue
            cut, shape = self.cuts[name], list(parameter.shape)
            shape[cut.dim] = cut.size
            whole = torch.empty(shape, dtype=parameter.dtype)
            first_weights(key, whole, self.config, seed)
            parameter.data.copy_(cut_tensor(whole, cut, self.group.rank))

    def _score(self, x: Tensor, labels: Tensor) -> Tensor:
        assert self.head is not None
        scores = column_linear(x, self._copies.copy(self.head.weight), None, self.group)
        cap = self.config.logit_softcap
        scores = scores if cap is None else torch.tanh(scores / cap) * cap
        vocab_size = self.config.vocab_size
        return vocab_cross_entropy(scores, labels, vocab_size, self.group, reduction="sum")
