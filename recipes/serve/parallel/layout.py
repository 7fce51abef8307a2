"""``Layout``: which rank holds which layers and heads. Plain data."""

import dataclasses
import itertools

from blocks._checks import check
from blocks.pipeline import partition_layers
from blocks.sharding import Mesh
from recipes.model import ModelConfig
from recipes.model.tensor_parallel_cuts import kv_heads_of, tensor_parallel_cuts


@dataclasses.dataclass(frozen=True)
class Layout:
    """``pp`` stages, each shared by ``tp`` ranks; ranks of a stage are neighbours.

    >>> layout = Layout(tp=2, pp=3)
    >>> layout.num_ranks, layout.stage(3), layout.tensor_rank(3), layout.sampler
    (6, 1, 1, 4)
    """

    tp: int = 1
    pp: int = 1

    @property
    def num_ranks(self) -> int:
        return self.tp * self.pp

    @property
    def mesh(self) -> Mesh:
        return Mesh.of(pipeline=self.pp, tensor=self.tp)

    def stage(self, rank: int) -> int:
        """Number of the stage that a rank has a part of."""
        return rank // self.tp

    def tensor_rank(self, rank: int) -> int:
        """Place of a rank among those of its stage."""
        return rank % self.tp

    @property
    def sampler(self) -> int:
        """The rank that draws tokens: the first of the last stage."""
        return (self.pp - 1) * self.tp

    def name(self, rank: int) -> str:
        """A rank as people are told of it.

        >>> Layout(2, 2).name(3)
        'rank 3 (stage 1 of 2, tensor rank 1 of 2)'
        """
        stage = f"stage {self.stage(rank)} of {self.pp}"
        return f"rank {rank} ({stage}, tensor rank {self.tensor_rank(rank)} of {self.tp})"

    def check(self, model: ModelConfig) -> None:
        """
        Raises:
            ValueError: a model that cannot be cut so.
        """
        tensor_parallel_cuts(model, self.tp, vocabulary=True)
        at_least = f"at most vocab_size ({model.vocab_size})"
        check(self.tp <= model.vocab_size, "tp", at_least, self.tp)
        most = f"at most num_layers ({model.num_layers}), a layer a stage"
        check(self.pp <= model.num_layers, "pp", most, self.pp)

    def layers(self, model: ModelConfig) -> list[range]:
        """Layers of every stage: the slowest is as fast as can be, weights read being the cost."""
        layer, head = _weights_read(model)
        bounds = partition_layers([layer] * model.num_layers, self.pp, last_cost=head).bounds
        return [range(*pair) for pair in itertools.pairwise(bounds)]

    def kv_heads(self, model: ModelConfig, rank: int) -> int:
        """Key and value heads that a rank holds; fewer heads than ranks are held several times."""
        return len(kv_heads_of(model, self.tp)[self.tensor_rank(rank)])


def _weights_read(model: ModelConfig) -> tuple[int, int]:
    """Weights that a decoded token meets in a layer, and in the head."""
    hidden, inner = model.hidden_size, model.intermediate_size
    heads = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    experts = model.num_experts_per_token or 1
    mlp = (3 if model.gated_mlp else 2) * inner * experts
    return hidden * (heads + mlp), (model.embedding_dim or hidden) * model.vocab_size
