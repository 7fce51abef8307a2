"""What every run of layers costs on every submesh, for the partition of the mesh. Needs numpy."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from blocks._checks import fail
from blocks.pipeline import LayerSums
from blocks.pipeline.inter_op import SubmeshShape
from blocks.sharding import Cluster, Mesh, MeshCost
from recipes.plan.candidates import Candidate, candidates, priced
from recipes.plan.chain import LayerChain
from recipes.plan.config import PlanConfig
from recipes.plan.layer_price import LayerPrice
from recipes.plan.parallel_work import in_parallel
from recipes.plan.pins import parse_pins
from recipes.plan.reduced import Reduced
from recipes.plan.stage_meshes import stage_meshes

Note = Callable[[str], None]

Prices = dict[int, tuple[LayerPrice, ...]]
"""Of every layer, by number of microbatches."""


@dataclasses.dataclass(frozen=True)
class StageOption:
    """A candidate, with or without repeating the forward."""

    candidate: Candidate
    recompute: bool


@dataclasses.dataclass(frozen=True, eq=False)
class OptionTables:
    """Costs of layers by number of microbatches, and the options they are the costs of.

    sums: by number of microbatches what ``partition_mesh`` asks for.
    options: by shape of the submesh the options, in the order of the tables.
    """

    sums: Mapping[int, LayerSums]
    options: Mapping[SubmeshShape, tuple[StageOption, ...]]

    def option(self, shape: SubmeshShape, name: str) -> StageOption:
        return self.options[shape][int(name)]


def option_tables(
    chains: Mapping[int, LayerChain],
    cluster: Cluster,
    shapes: Sequence[SubmeshShape],
    config: PlanConfig,
    note: Note,
) -> OptionTables:
    """Candidates of every mesh of every shape, priced for every number of microbatches.

    Args:
        chains: by number of microbatches the layers, for the rows of one.

    Raises:
        ValueError: pins that no mesh can honour.
    """
    pins = parse_pins(config.pins)
    reduced = {count: Reduced.of(chain, pins=pins) for count, chain in chains.items()}
    todo = [
        (shape, mesh) for shape in shapes for mesh in stage_meshes(cluster, shape, config.mesh_axes)
    ]
    repeats = (False, True) if config.recompute is None else (config.recompute,)
    found: dict[SubmeshShape, list[tuple[StageOption, Prices]]] = {}
    refused: list[ValueError] = []
    work = MeshWork(reduced, cluster, config)
    for number, ((shape, mesh), kept) in enumerate(
        zip(todo, in_parallel(work, [mesh for _, mesh in todo], config.workers), strict=True), 1
    ):
        sizes = " x ".join(map(str, mesh.sizes))
        if isinstance(kept, ValueError):
            refused.append(kept)
            kept = {}
        note(f"strategies on {shape} as {sizes}: {len(kept)} ({number} of {len(todo)})")
        options = found.setdefault(shape, [])
        for candidate, prices in kept.items():
            options += [(StageOption(candidate, again), prices) for again in repeats]
    if not any(found.values()):
        raise refused[-1] if refused else fail("pins", "a mesh of as many axes", config.pins)
    transfer = _transfer(cluster, chains)
    sums = {count: _sums(reduced[count], count, shapes, found, transfer(count)) for count in chains}
    named = {shape: tuple(option for option, _ in found[shape]) for shape in shapes}
    return OptionTables(sums, named)


@dataclasses.dataclass(frozen=True, eq=False)
class MeshWork:
    """What is done for every mesh, in a process of its own where there are cores for it."""

    reduced: Mapping[int, Reduced]
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
                like=next(iter(kept), None),
            )
            asked = {one: self.reduced[one] for one in {count, *self._spread(mesh)}}
            for candidate in made:
                if candidate not in kept:
                    kept[candidate] = _prices(candidate, asked, cost, self.config)
        return kept

    def _spread(self, mesh: Mesh) -> set[int]:
        """Numbers of microbatches in which a row is spread over a host, or over less."""
        inside = self.cluster.nodes[0].num_devices
        rows = {count: self.config.batch_size // count for count in self.reduced}
        return {count for count in rows if rows[count] * inside >= mesh.num_ranks}


def _prices(
    candidate: Candidate, reduced: Mapping[int, Reduced], cost: MeshCost, config: PlanConfig
) -> Prices:
    """By number of microbatches, those whose rows can be cut so."""
    prices = {
        count: priced(candidate, one, cost, config.optimizer) for count, one in reduced.items()
    }
    return {count: price for count, price in prices.items() if price is not None}


def _sums(
    reduced: Reduced,
    count: int,
    shapes: Sequence[SubmeshShape],
    found: Mapping[SubmeshShape, list[tuple[StageOption, Prices]]],
    transfer: Callable[[int, SubmeshShape, SubmeshShape], tuple[float, float]],
) -> LayerSums:
    import numpy as np

    most = max(max(map(len, found.values())), 1)
    num_layers = sum(reduced.counts)
    layers = {
        name: np.full((num_layers, len(shapes), most), np.inf if name == "forward_s" else 0.0)
        for name in (
            *("forward_s", "backward_s", "once_s"),
            *("fixed_bytes", "microbatch_bytes", "transient_bytes"),
        )
    }
    stage = {"microbatch_bytes": np.zeros((len(shapes), most))}
    for s, shape in enumerate(shapes):
        for o, (option, by_count) in enumerate(found[shape]):
            if count not in by_count:
                continue
            for price, stands_for in zip(by_count[count], reduced.stands_for, strict=True):
                at = (list(stands_for), s, o)
                forward, again = price.seconds("forward"), option.recompute
                layers["forward_s"][at] = forward
                layers["backward_s"][at] = price.seconds("backward") + again * forward
                layers["once_s"][at] = price.seconds("update")
                layers["fixed_bytes"][at] = price.fixed_bytes
                kept = price.arrives_bytes if again else price.flight_bytes
                layers["microbatch_bytes"][at] = kept
                made_anew = price.flight_bytes if again else 0.0
                layers["transient_bytes"][at] = price.transient_bytes + made_anew
            if not option.recompute:  # else every layer counts what arrives
                arrives = max(price.arrives_bytes for price in by_count[count])
                stage["microbatch_bytes"][s, o] = arrives
    names = tuple(map(str, range(most)))
    return LayerSums(shapes, names, layers, stage=stage, transfer=transfer)


def _transfer(
    cluster: Cluster, chains: Mapping[int, LayerChain]
) -> Callable[[int], Callable[[int, SubmeshShape, SubmeshShape], tuple[float, float]]]:
    """Seconds over a boundary as if both meshes cut what crosses it over all their devices."""

    def of(count: int) -> Callable[[int, SubmeshShape, SubmeshShape], tuple[float, float]]:
        sizes = boundary_bytes(chains[count])

        def transfer(bound: int, before: SubmeshShape, after: SubmeshShape) -> tuple[float, float]:
            alone = len(cluster.nodes) == 1
            inside = alone or before.size + after.size <= cluster.nodes[0].num_devices
            link = cluster.link(cluster.nodes[0].link if inside else cluster.between)
            lanes = min(before.size, after.size)
            there, back = (link.seconds("send", b / lanes, 2) if b else 0.0 for b in sizes[bound])
            return there, back

        return transfer

    return of


def boundary_bytes(chain: LayerChain) -> list[tuple[int, int]]:
    """For every bound between layers the bytes that cross it forward and backward."""
    num_layers = chain.num_layers
    found = [[0, 0] for _ in range(num_layers + 1)]
    for layer, template in enumerate(chain.sequence):
        cut = chain.layers[template]
        for value, source in cut.receives:
            away = source - template
            size = cut.graph.values[cut.local[value]].num_bytes
            other = min(max(layer + away, 0), num_layers - 1)
            low, high = sorted((layer, other))
            for bound in range(low + 1, high + 1):
                found[bound][0 if away < 0 else 1] += size
    return [(forward, backward) for forward, backward in found]
