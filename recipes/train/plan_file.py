"""Plan files: what the ``plan`` verb decides and a run follows."""

import dataclasses
from pathlib import Path
from typing import Any

from blocks._checks import check, reading
from blocks.pipeline import Action, CostSurface, PipelinePlan, Timeline, simulate
from recipes.plan.plan_file import read_plan, write_plan
from recipes.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class PlanFile:
    """A pipeline's plan, and what it was made from.

    plan: order and cuts of one replica's step. costs: of every rank's slices, as measured.
    sizes: fields of ``TrainConfig`` the costs hold for; a run of other sizes is refused.
    """

    plan: PipelinePlan
    costs: tuple[CostSurface, ...]
    sizes: dict[str, Any]

    def write(self, path: Path) -> None:
        content = {
            "plan": self.plan.to_json(),
            "costs": [cost.to_json() for cost in self.costs],
            "sizes": self.sizes,
        }
        write_plan(path, content)

    @classmethod
    def read(cls, path: str | Path) -> "PlanFile":
        """
        Raises:
            ValueError: no plan there, or a text that is none.
        """
        content = read_plan(path, "the plan verb")
        known = isinstance(content, dict) and set(content) == set(cls.__dataclass_fields__)
        got = content.get("format", sorted(content)) if isinstance(content, dict) else content
        hint = "or a parallel plan of recipes.plan, where a run is meant"
        check(known, "plan", "one of the plan verb: plan, costs, sizes", repr(got)[:80], hint)
        with reading("plan", content, cls):
            plan, sizes = PipelinePlan.from_json(content["plan"]), content["sizes"]
            costs = tuple(CostSurface.from_json(cost) for cost in content["costs"])
        with reading("sizes of the plan", sizes, SIZES):
            num_ranks = plan.schedule.num_ranks
        check(len(costs) == num_ranks, "costs of the plan", f"{num_ranks} surfaces", len(costs))
        return cls(plan, costs, sizes)

    def timeline(self) -> Timeline:
        """The step as the plan's costs have it."""
        plan = self.plan
        chunks = len(plan.schedule.placement) // plan.schedule.num_ranks

        def seconds(action: Action) -> float:
            rank = plan.schedule.placement[action.stage]
            start, stop = plan.bounds[action.slice : action.slice + 2]
            return self.costs[rank].seconds(action.kind, stop - start, start) / chunks

        return simulate(plan.schedule, seconds)


SIZES = (
    *("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "vocab_size"),
    *("context_len", "batch_size", "microbatch", "dp", "dtype", "layers_per_stage"),
    *("tie_embeddings", "window", "document_mask"),
)


def follow(config: TrainConfig) -> TrainConfig:
    """The config with what its plan decides; as it is without one.

    Raises:
        ValueError: a plan for other sizes, or settings beside it that it decides.
    """
    if config.plan is None:
        return config
    file = PlanFile.read(config.plan)
    schedule, cuts = file.plan.schedule, ",".join(map(str, file.plan.bounds))
    decided = {
        "pp": schedule.num_ranks,
        "chunks": schedule.num_stages // schedule.num_ranks,
        "slices": file.plan.num_slices,
        "cuts": cuts,
        "microbatch": file.sizes["microbatch"],
        "layers_per_stage": file.sizes["layers_per_stage"],
        "schedule": "auto",
        "tp": 1,
    }
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in decided.items():
        given = getattr(config, name)
        free = given in (fields[name], value)
        check(free, name, f"{value!r} beside a plan", repr(given), "the plan decides it")
    config = dataclasses.replace(config, **decided)
    for name in SIZES:
        made_for, got = file.sizes[name], getattr(config, name)
        hint = "plan again for these sizes"
        check(
            made_for == got or got == "auto",
            name,
            f"{made_for!r}, which the plan was made for",
            repr(got),
            hint,
        )
    return config
