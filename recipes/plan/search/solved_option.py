"""``with_solved``: stages solved on their own as further ways to run layers. Needs numpy."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from blocks.pipeline import LayerSums
from blocks.pipeline.inter_op import InterOpPlan, StageCost, SubmeshShape
from recipes.plan.layers.chain import LayerChain
from recipes.plan.search.layer_price import LayerPrice
from recipes.plan.search.stage_options import OptionTables
from recipes.plan.search.stage_solution import StageSolution


def with_solved(
    tables: OptionTables,
    found: InterOpPlan,
    chain: LayerChain,
    solutions: Sequence[StageSolution],
) -> OptionTables:
    """The tables with what the stages of a plan take as they were solved on their own.

    The strategies of a stage become an option of its shape, so that the partition can be asked
    again with costs that its answer really has, and its bound is one on such plans, too. A layer
    costs what most layers of its kind cost in the stage; by how much the first and the last differ
    from them every stage of the option does, too. So the stage solved costs and holds exactly what
    its solution does, and other stages about what theirs would.
    """
    count = found.num_microbatches
    options = {shape: list(some) for shape, some in tables.options[count].items()}
    added: list[tuple[SubmeshShape, int, StageSolution]] = []
    for stage, solution in zip(found.stages, solutions, strict=True):
        some = options[stage.shape]
        if all(one.solved is not solution.prices for one in some):
            added.append((stage.shape, len(some), solution))
            named = tables.option(count, stage.shape, stage.option)
            some.append(dataclasses.replace(named, solved=solution.prices))
    most = max(map(len, options.values()))
    sums = _wider(tables.sums[count], most)
    for shape, option, solution in added:
        _fill(sums, chain, sums.shapes.index(shape), option, solution)
    by_shape = {shape: tuple(some) for shape, some in options.items()}
    return dataclasses.replace(
        tables,
        sums={**tables.sums, count: sums},
        options={**tables.options, count: by_shape},
    )


def _wider(sums: LayerSums, num_options: int) -> LayerSums:
    """With room for so many options, which cannot be run."""
    import numpy as np

    more = max(0, num_options - len(sums.options))

    def padded(values: Any, name: str) -> Any:
        value = np.inf if name == "forward_s" and values.ndim == 3 else 0.0
        shape = (*values.shape[:-1], more)
        return np.concatenate([values, np.full(shape, value)], axis=-1)

    size = (len(sums.shapes), len(sums.options))
    stage = {name: sums.stage.get(name, np.zeros(size)) for name in StageCost._fields}
    return LayerSums(
        sums.shapes,
        tuple(map(str, range(len(sums.options) + more))),
        {name: padded(values, name) for name, values in sums.layers.items()},
        stage={name: padded(values, "") for name, values in stage.items()},
        transfer=sums.transfer,
    )


def _fill(
    sums: LayerSums, chain: LayerChain, shape: int, option: int, solution: StageSolution
) -> None:
    """What layers cost as they do in a stage."""
    usual: dict[str, tuple[int, StageCost]] = {}
    total = dict.fromkeys(StageCost._fields, 0.0)
    kinds: dict[str, int] = {}
    for price, layers in zip(solution.prices, solution.reduced.stands_for, strict=True):
        cost, kind = _cost(price), chain.kind(layers[0])
        kinds[kind] = kinds.get(kind, 0) + len(layers)
        if len(layers) > usual.get(kind, (0, cost))[0]:
            usual[kind] = (len(layers), cost)
        for name, value in cost._asdict().items():
            total[name] += len(layers) * value
    for layer in range(chain.num_layers):
        if chain.kind(layer) in usual:
            for name, value in usual[chain.kind(layer)][1]._asdict().items():
                sums.layers[name][layer, shape, option] = value
    for name in StageCost._fields:
        alike = sum(n * getattr(usual[kind][1], name) for kind, n in kinds.items())
        sums.stage[name][shape, option] = total[name] - alike
    sums.stage["transient_bytes"][shape, option] = solution.predicted.transient_bytes


def _cost(price: LayerPrice) -> StageCost:
    """Of a layer whose graph repeats its forward if it is repeated."""
    return StageCost(
        forward_s=price.seconds("forward"),
        backward_s=price.seconds("backward"),
        once_s=price.seconds("update"),
        fixed_bytes=price.fixed_bytes,
        microbatch_bytes=price.flight_bytes,
    )
