"""What every run of layers costs on every submesh, for the partition of the mesh. Needs numpy."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from blocks._checks import fail
from blocks.pipeline import LayerSums
from blocks.pipeline.inter_op import StageCost, SubmeshShape
from blocks.pipeline.inter_op.flow import FLOWS
from blocks.sharding import Cluster
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.reduced import Reduced
from recipes.plan.pins import parse_pins
from recipes.plan.search.candidates import Candidate
from recipes.plan.search.layer_price import LayerPrice
from recipes.plan.search.mesh_work import MeshWork, Prices
from recipes.plan.search.parallel_work import in_parallel
from recipes.plan.search.stage_meshes import stage_meshes
from recipes.plan.search.transfers import Transfer, transfer_of
from recipes.plan.search.useful_options import OptionTotal, useful_options

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class StageOption:
    """A candidate, with or without repeating the forward.

    solved: prices of the layers of a stage that was solved on its own, where the option is that.
    """

    candidate: Candidate
    recompute: bool
    solved: tuple[LayerPrice, ...] | None = None


class PricedOption(NamedTuple):
    """An option, and what every layer takes under it by number of microbatches."""

    option: StageOption
    prices: Prices


@dataclasses.dataclass(frozen=True, eq=False)
class OptionTables:
    """Costs of layers by number of microbatches, and the options they are the costs of.

    sums: by number of microbatches what ``partition_mesh`` asks for.
    options: by number of microbatches and shape of the submesh the options, in the order of the
        tables.
    """

    sums: Mapping[int, LayerSums]
    options: Mapping[int, Mapping[SubmeshShape, tuple[StageOption, ...]]]

    def option(self, num_microbatches: int, shape: SubmeshShape, name: str) -> StageOption:
        return self.options[num_microbatches][shape][int(name)]

    def with_transfers(self, transfers: Mapping[int, Transfer]) -> "OptionTables":
        """The same with other costs of boundaries, by number of microbatches."""
        sums = {
            count: LayerSums(
                *(one.shapes, one.options, one.layers), stage=one.stage, transfer=transfers[count]
            )
            for count, one in self.sums.items()
        }
        return dataclasses.replace(self, sums=sums)


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
    found: dict[SubmeshShape, list[PricedOption]] = {shape: [] for shape in shapes}
    refused: list[ValueError] = []
    again = {
        count: one.repeating(range(chains[count].num_layers))
        for count, one in reduced.items()
        if True in repeats
    }
    work = MeshWork(reduced, again, cluster, config)
    for number, ((shape, mesh), kept) in enumerate(
        zip(todo, in_parallel(work, [mesh for _, mesh in todo], config.workers), strict=True), 1
    ):
        sizes = " x ".join(map(str, mesh.sizes))
        if isinstance(kept, ValueError):
            refused.append(kept)
            kept = {}
        note(f"strategies on {shape} as {sizes}: {len(kept)} ({number} of {len(todo)})")
        for candidate, prices in kept.items():
            found[shape] += [
                PricedOption(StageOption(candidate, again), prices) for again in repeats
            ]
    if not any(found.values()):
        raise _no_mesh(refused, {len(mesh.axes) for _, mesh in todo}, config)
    sums, named = {}, {}
    for count, chain in chains.items():
        most = most_in_flight(config.schedules.split(","), chain.num_layers, count)
        useful = {
            shape: _useful(some, count, most, reduced[count]) for shape, some in found.items()
        }
        sums[count] = _layer_sums(reduced[count], count, useful, transfer_of(cluster, chain))
        named[count] = {shape: tuple(o for o, _ in some) for shape, some in useful.items()}
    return OptionTables(sums, named)


def _no_mesh(refused: Sequence[ValueError], axes: set[int], config: PlanConfig) -> ValueError:
    """Why no mesh can honour the pins, in the names of the plan."""
    if refused:
        return ValueError(re.sub(r"^pin of \d+@", "pin of ", str(refused[-1])))
    expected = f"{' or '.join(map(str, sorted(axes)))} placements, one for each axis of a mesh"
    return fail("pins", expected, repr(config.pins), f"mesh_axes is {config.mesh_axes}")


def _layer_sums(
    reduced: Reduced,
    count: int,
    options: Mapping[SubmeshShape, Sequence[PricedOption]],
    transfer: Transfer,
) -> LayerSums:
    import numpy as np

    shapes = tuple(options)
    most = max(1, *map(len, options.values()))
    size = (sum(reduced.counts), len(shapes), most)
    layers = {name: np.zeros(size) for name in StageCost._fields}
    layers["forward_s"][:] = np.inf
    stage = {"microbatch_bytes": np.zeros((len(shapes), most))}
    for s, shape in enumerate(shapes):
        for o, (option, by_count) in enumerate(options[shape]):
            for price, stands_for in zip(by_count[count], reduced.stands_for, strict=True):
                for name, value in _cost(price, option)._asdict().items():
                    layers[name][list(stands_for), s, o] = value
            if not option.recompute:  # else every layer counts what arrives
                arrives = max(price.arrives_bytes for price in by_count[count])
                stage["microbatch_bytes"][s, o] = arrives
    names = tuple(map(str, range(most)))
    return LayerSums(shapes, names, layers, stage=stage, transfer=transfer)


def _cost(price: LayerPrice, option: StageOption) -> StageCost:
    """What a layer adds to a stage."""
    again = option.recompute
    return StageCost(
        forward_s=price.seconds("forward"),
        backward_s=price.seconds("backward") + again * price.again_s,
        once_s=price.seconds("update"),
        fixed_bytes=price.fixed_bytes,
        microbatch_bytes=price.arrives_bytes if again else price.flight_bytes,
        transient_bytes=price.transient_bytes + (price.flight_bytes if again else 0.0),
    )


def most_in_flight(schedules: Sequence[str], num_layers: int, num_microbatches: int) -> int:
    """Microbatches that a stage may hold, were every layer a stage.

    >>> most_in_flight(["one_f_one_b"], 6, 64), most_in_flight(["one_f_one_b", "gpipe"], 6, 64)
    (6, 64)
    """
    flows = [FLOWS[name] for name in schedules]
    return max(flow.in_flight(num_layers, num_layers, num_microbatches) for flow in flows)


def _useful(
    options: Sequence[PricedOption], count: int, most: int, reduced: Reduced
) -> tuple[PricedOption, ...]:
    """Of those that can be cut into so many microbatches, at most ``most`` of them in flight."""
    able = [one for one in options if count in one.prices]
    totals = []
    for option, prices in able:
        costs = [_cost(price, option) for price in prices[count]]
        rows = list(zip(costs, reduced.counts, strict=True))
        each_s = sum(n * (c.forward_s + c.backward_s + c.once_s / count) for c, n in rows)
        fixed = sum(n * c.fixed_bytes for c, n in rows) + max(c.transient_bytes for c in costs)
        totals.append(OptionTotal(each_s, fixed, sum(n * c.microbatch_bytes for c, n in rows)))
    return tuple(able[at] for at in useful_options(totals, most))
