"""``MeshWork``: what is looked for on every mesh, in processes side by side. Needs numpy."""

import dataclasses
import math
from collections.abc import Mapping

from blocks.sharding import Cluster, Mesh, MeshCost
from recipes.plan.config import PlanConfig
from recipes.plan.layers.reduced import Reduced
from recipes.plan.search.candidates import Candidate, candidates, priced
from recipes.plan.search.layer_price import LayerPrice

Prices = dict[int, tuple[LayerPrice, ...]]
"""Of every layer, by number of microbatches."""


@dataclasses.dataclass(frozen=True, eq=False)
class MeshWork:
    """What is done for every mesh, in a process of its own where there are cores for it.

    reduced: the model, by number of microbatches.
    again: the same with its forward repeated; empty where none is.
    """

    reduced: Mapping[int, Reduced]
    again: Mapping[int, Reduced]
    cluster: Cluster
    config: PlanConfig

    def __call__(self, mesh: Mesh) -> dict[Candidate, Prices] | ValueError:
        """Candidates of a mesh with their prices; why there are none, where pins forbid them."""
        if self.reduced[min(self.reduced)].pins_on(mesh) is None:
            return {}
        try:
            return self._candidates(mesh)
        except ValueError as error:
            if self.config.pins:
                return error
            raise

    def _candidates(self, mesh: Mesh) -> dict[Candidate, Prices]:
        cost = MeshCost(self.cluster, mesh)
        kept: dict[Candidate, Prices] = {}
        for count in sorted(self.reduced):  # most rows in a microbatch first
            known = any(count in prices for prices in kept.values())
            if known or (kept and count not in self._spread(mesh)):
                continue
            made = candidates(
                *(self.reduced[count], cost),
                num_microbatches=count,
                in_flight=min(count, math.ceil(self.cluster.num_devices / mesh.num_ranks)),
                optimizer=self.config.optimizer,
                points=min(self.config.memory_points, 2 if kept else self.config.memory_points),
            )
            asked = {count, *self._spread(mesh)}
            for candidate in made:
                if candidate not in kept:
                    prices = {one: self._priced(candidate, one, cost) for one in asked}
                    kept[candidate] = {one: p for one, p in prices.items() if p is not None}
        return kept

    def _spread(self, mesh: Mesh) -> set[int]:
        """Numbers of microbatches in which a row is spread over a host, or over less."""
        inside = self.cluster.nodes[0].num_devices
        rows = {count: self.config.batch_size // count for count in self.reduced}
        return {count for count in rows if rows[count] * inside >= mesh.num_ranks}

    def _priced(
        self, candidate: Candidate, count: int, cost: MeshCost
    ) -> tuple[LayerPrice, ...] | None:
        """Of so many microbatches; None where their rows cannot be cut so."""
        once, again = self.reduced[count], self.again.get(count)
        return priced(candidate, once, again, cost, self.config.optimizer)
