"""Replay Alpa's published experiments: predicted beside published TFLOP/s, row by row.

python -m benches.alpa_replay --family gpt --gpus 1 2 4 8   # some rows
python -m benches.alpa_replay                               # all of them, tens of minutes

Each method is a restriction of one search on the bundled cluster p3.16xlarge: ``intra`` has one
stage, ``inter`` one device a stage, ``auto`` is free. Nothing is fitted to the rows; the share of
the peak that a device reaches comes from the paper's rows of one GPU, which are not ranked. Hand
made rows (Megatron, DeepSpeed) are not replayed: their settings are only known in part. As in the
paper FLOPs count forwards twice, recomputed or not.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence

import torch

from benches.alpa_paper import MODELS, TFLOPS, Family, Method, Model, iteration_flops
from benches.plan_ranking import spearman
from blocks.sharding import OpGraph, bundled_cluster
from recipes.plan.chain import LayerChain
from recipes.plan.config import PlanConfig
from recipes.plan.families.hugging_face import model as hugging_face
from recipes.plan.families.static_moe import StaticMoE, StaticMoEConfig
from recipes.plan.families.wide_resnet import DEPTHS, WideResNet, WideResNetConfig
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.scaled_graph import graphs_by_rows
from recipes.plan.search import search
from recipes.plan.trace import trace

METHODS: dict[Method, dict[str, int | bool]] = {
    "intra": {"max_stages": 1},
    "inter": {"max_stage_devices": 1, "idle_devices": True},
    "auto": {},
}
NUM_GPUS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A row: TFLOP/s per GPU as published and as predicted; None for out of memory.

    plan: that the prediction is of.
    """

    model: Model
    method: Method
    published: float | None
    predicted: float | None
    plan: ParallelPlan | None

    @property
    def same_verdict(self) -> bool:
        """Whether both say that it fits, or both that it does not."""
        return (self.published is None) == (self.predicted is None)


def graphs_of(model: Model) -> Callable[[int], OpGraph]:
    """From the rows of a microbatch to the step of a model, traced without weights."""
    return graphs_by_rows(lambda rows: _graph(model, rows), (2, 4))


def sequences_a_row(model: Model) -> int:
    """Sequences that stay together: experts take groups of 2,048 tokens."""
    return 2 if model.family == "moe" else 1


def _graph(model: Model, rows: int) -> OpGraph:
    rows *= sequences_a_row(model)
    if model.family == "wide_resnet":
        depths = DEPTHS[model.num_layers]
        config = WideResNetConfig(depths, model.hidden, model.width_factor, 1024)
        images = torch.empty(rows, 3, 224, 224, device="meta")
        labels = torch.empty(rows, dtype=torch.int64, device="meta")
        return trace(lambda: WideResNet(config), (), {"images": images, "labels": labels}).graph
    tokens = torch.empty(rows, model.seq_len, dtype=torch.int64, device="meta")
    if model.family == "gpt":
        make = hugging_face(
            "GPT2LMHeadModel",
            n_embd=model.hidden,
            n_layer=model.num_layers,
            n_head=model.num_heads,
            n_positions=model.seq_len,
            vocab_size=51_200,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        called = {"input_ids": tokens, "labels": tokens}
        return trace(lambda: make().half(), (), called).graph
    moe = StaticMoEConfig(model.hidden, model.num_layers, model.num_heads, model.num_experts)
    called = {"tokens": tokens, "labels": tokens}
    return trace(lambda: StaticMoE(moe).half(), (), called).graph


def replay(
    model: Model, method: Method, graphs: Callable[[int], OpGraph], *, workers: int | None = None
) -> Replayed:
    """The best plan a method has for a model, and what it comes to."""
    nodes, gpus = model.nodes
    cluster = bundled_cluster("p3.16xlarge", num_nodes=nodes, num_devices=gpus)
    config = PlanConfig(
        model.name,
        cluster="p3.16xlarge",
        batch_size=model.global_batch // sequences_a_row(model),
        schedules="one_f_one_b",
        workers=workers,
        **METHODS[method],  # type: ignore[arg-type]
    )
    published = TFLOPS[model.family][method][NUM_GPUS.index(model.num_gpus)]
    try:
        plan = search(lambda rows: LayerChain.of(graphs(rows)), cluster, config).plan
    except ValueError as error:
        if "memory" not in str(error):
            raise
        return Replayed(model, method, published, None, None)
    if model.family == "gpt":
        flops = iteration_flops(model)
    else:
        flops = 4 / 3 * graphs(2).flops() * config.batch_size / 2  # forwards twice
    predicted = flops / plan.predicted.step_s / model.num_gpus / 1e12
    return Replayed(model, method, published, predicted, plan)


def correlation(rows: Sequence[Replayed]) -> float:
    """Rank correlation of those rows of several GPUs that fit, by both accounts."""
    pairs = [
        (row.predicted, row.published)
        for row in rows
        if row.predicted is not None and row.published is not None and row.model.num_gpus > 1
    ]
    predicted, published = zip(*pairs, strict=True)
    return spearman(predicted, published)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benches.alpa_replay", description=__doc__)
    families: tuple[Family, ...] = ("gpt", "moe", "wide_resnet")
    parser.add_argument("--family", nargs="+", choices=families, default=families)
    parser.add_argument("--method", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--gpus", nargs="+", type=int, default=NUM_GPUS)
    options = parser.parse_args(argv)
    for family in options.family:
        rows = []
        for model in MODELS:
            if model.family != family or model.num_gpus not in options.gpus:
                continue
            graphs = graphs_of(model)
            for method in options.method:
                row = replay(model, method, graphs)
                rows.append(row)
                print(_line(row), flush=True)
        if sum(row.predicted is not None for row in rows if row.model.num_gpus > 1) > 2:
            verdicts = sum(row.same_verdict for row in rows)
            found = f"Spearman {correlation(rows):.3f}; fits or not: {verdicts} of {len(rows)}"
            print(f"{family}: {found}")
    return 0


def _line(row: Replayed) -> str:
    published, predicted = (
        "out of memory" if x is None else f"{x:.2f}" for x in (row.published, row.predicted)
    )
    line = f"{row.model.family} {row.model.name} on {row.model.num_gpus} GPUs, {row.method}: "
    line += f"published {published}, predicted {predicted} TFLOP/s per GPU"
    if row.plan is not None:
        stages = ", ".join(
            f"{stage.num_layers} on {'x'.join(map(str, stage.mesh.sizes))}"
            for stage in row.plan.stages[:4]
        )
        line += (
            f"; {len(row.plan.stages)} stages ({stages}), {row.plan.num_microbatches} microbatches"
        )
    return line


if __name__ == "__main__":
    sys.exit(main())
