"""Plans that practitioners know to be best, looked for on traced models. Each says what it found.

Run as a script it prints them as JSON; tests and figures read that, as annotations that are
executed make the solver's loops many times slower.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from blocks.sharding import Mesh, MeshCost, OpGraph, OpNode, Shard, Strategy, bundled_cluster
from blocks.sharding.intra_op import IntraOpPlan, solve
from recipes.plan.config import PlanConfig
from recipes.plan.families.hugging_face import LLAMA, model
from recipes.plan.families.static_moe import StaticMoE, StaticMoEConfig
from recipes.plan.families.wide_resnet import WideResNet, WideResNetConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.scaled_graph import graphs_by_rows
from recipes.plan.search import search
from recipes.plan.trace import trace

HIDDEN, TOKENS, VOCAB = 8192, 512, 128_000
COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROWS = ("o_proj", "down_proj")


@functools.cache
def llama() -> Callable[[int], OpGraph]:
    """By rows of a microbatch a step of two wide layers."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 3 * HIDDEN, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": VOCAB}
    make = model("LlamaForCausalLM", **{**LLAMA["tiny"], **sizes, **heads})

    def graph(rows: int) -> OpGraph:
        tokens = torch.empty(rows, TOKENS, dtype=torch.int64, device="meta")
        called = {"input_ids": tokens, "labels": tokens}
        return trace(lambda: make().to(torch.bfloat16), (), called).graph

    return graphs_by_rows(graph, (2, 4))


def on(cluster: str, num_devices: int) -> tuple[Mesh, MeshCost]:
    mesh = Mesh.of(x=num_devices)
    return mesh, MeshCost(bundled_cluster(cluster, num_devices=num_devices), mesh)


def parameters(graph: OpGraph, found: IntraOpPlan) -> dict[str, str]:
    """How every matrix, kernel or table lies along the one axis."""
    return {
        node.name: str(strategy.outputs[0][0])
        for node, strategy in zip(graph.nodes, found.strategies, strict=True)
        if node.role == "parameter" and len(graph.values[node.outputs[0]].shape) > 1
    }


def of_op(graph: OpGraph, found: IntraOpPlan, op: str) -> list[tuple[OpNode, Strategy]]:
    pairs = zip(graph.nodes, found.strategies, strict=True)
    return [(node, strategy) for node, strategy in pairs if op in node.op and node.role == "op"]


@functools.cache
def _few_tokens(num_devices: int) -> tuple[OpGraph, IntraOpPlan]:
    graph = llama()(1)
    return graph, solve(graph, *on("8xH100", num_devices))


def megatron(num_devices: int) -> dict[str, Any]:
    """Wide layers, few tokens: by columns, by heads, by rows."""
    graph, found = _few_tokens(num_devices)
    cut = parameters(graph, found)
    heads = [s.outputs[0][0] for _, s in of_op(graph, found, "attention")]
    return {
        "columns": sorted({cut[n] for n in cut if any(part in n for part in COLUMNS)}),
        "rows": sorted({cut[n] for n in cut if any(part in n for part in ROWS)}),
        "attention": sorted({str(one) for one in heads}),
        "gap": found.gap,
    }


def vocabulary() -> dict[str, Any]:
    """The head by its rows, and nothing as long as the vocabulary sent."""
    graph, found = _few_tokens(8)
    most = max(use.sent_bytes / use.count for use in found.price.collectives)
    gathers = [
        s.inputs[0] for node, s in of_op(graph, found, "gather") if "backward" not in node.op
    ]
    return {
        "head": parameters(graph, found)["lm_head.weight"],
        "picked": sorted({str(one[0]) for one in gathers}),
        "longest_over_hidden": most / (2 * 2 * TOKENS * HIDDEN),
    }


def zero() -> list[dict[str, Any]]:
    """Many rows: data parallel; parameters are cut where they must, and only as many as must."""
    layers = [part for _ in range(4) for part in (nn.Linear(2048, 2048, bias=False), nn.ReLU())]
    rows = torch.empty(65_536, 2048, dtype=torch.bfloat16, device="meta")
    net = lambda: nn.Sequential(*layers).to(torch.bfloat16)  # noqa: E731
    graph = trace(net, (rows,), loss=lambda out: out.float().pow(2).mean()).graph
    mesh, cost = on("8xH100", 8)
    free = solve(graph, mesh, cost, num_microbatches=8)
    weight = 2048 * 2048 * 2
    found = []
    for whole in (4, 3, 1, 0):  # parameters that there is room for
        cap = free.memory_bytes - (4 + 4 - whole) * weight * 7 / 8  # gradients are cut before
        plan = solve(graph, mesh, cost, num_microbatches=8, memory_cap=cap)
        cut = [how for how in parameters(graph, plan).values() if how != "R"]
        products = [(n, s) for n, s in of_op(graph, plan, "einsum") if n.phase == "forward"]
        batch = [s.choices == (n.rule.index("row"),) for n, s in products]
        state = [
            s.outputs[0][0]
            for n, s in zip(graph.nodes, plan.strategies, strict=True)
            if n.role == "update"
        ]
        found.append(
            {
                "room": whole, "whole": 4 - len(cut), "by_batch": all(batch),
                "state": sorted({str(one)[0] for one in state}), "seconds": plan.objective_s,
            }
        )  # fmt: skip
    return found


def convolutions() -> dict[str, Any]:
    """A small net by the batch alone; of a wide one the late kernels by channels."""
    small = _convolutions(WideResNetConfig((1, 1, 1, 1), 64, 2, 1024), 128)
    wide = _convolutions(WideResNetConfig((1, 1, 1, 1), 320, 16, 1024), 8)
    return {"small": small, "wide": wide}


def _convolutions(config: WideResNetConfig, rows: int) -> list[str]:
    images = torch.empty(rows, 3, 224, 224, device="meta")
    labels = torch.empty(rows, dtype=torch.int64, device="meta")
    graph = trace(lambda: WideResNet(config), (), {"images": images, "labels": labels}).graph
    found = solve(graph, *on("p3.16xlarge", 8))
    forward = [s for n, s in of_op(graph, found, "convolution") if n.phase == "forward"]
    return ["batch" if s.inputs[0][0] == Shard(0) else "channels" for s in forward]


def experts() -> dict[str, Any]:
    """Experts on ranks of their own; all else by the batch."""
    config = StaticMoEConfig(1024, 2, 16, 8, group_size=1024)
    tokens = torch.empty(8, 1024, dtype=torch.int64, device="meta")
    called = {"tokens": tokens, "labels": tokens}
    graph = trace(lambda: StaticMoE(config).to(torch.bfloat16), (), called).graph
    found = solve(graph, *on("8xH100", 8))
    cut = parameters(graph, found)
    attention = [s.outputs[0][0] for _, s in of_op(graph, found, "attention")]
    return {
        "up": cut["layers.1.feed_forward.up"],
        "down": cut["layers.1.feed_forward.down"],
        "attention": sorted({str(one) for one in attention}),
        "all_to_all": found.counts.get("all_to_all", 0),
    }


def heavy_head() -> dict[str, Any]:
    """A pipeline of single devices: the stage of a head as heavy as layers has fewer of them."""

    def chains(rows: int) -> LayerChain:
        found = LayerChain.of(llama()(rows))
        return LayerChain.of(llama()(rows), num_layers=found.num_layers + 18)

    config = PlanConfig(
        *("llama", "8xH100"),
        num_devices=4,
        batch_size=16,
        num_microbatches=16,
        max_stage_devices=1,
        memory_gib=1000.0,  # so that the balance alone decides
        workers=1,
    )
    cluster = bundled_cluster("8xH100", num_devices=4)
    stages = search(chains, cluster, config).plan.stages
    took = [stage.predicted.forward_s + stage.predicted.backward_s for stage in stages]
    return {
        "layers": [stage.num_layers for stage in stages],
        "spread": max(took) / min(took),
        "num_layers": chains(1).num_layers,
    }


PLANS: Mapping[str, Callable[[], Any]] = {
    "columns and rows, heads, on 4": lambda: megatron(4),
    "columns and rows, heads, on 8": lambda: megatron(8),
    "vocabulary": vocabulary,
    "zero": zero,
    "convolutions": convolutions,
    "experts": experts,
    "heavy head": heavy_head,
}


def main() -> None:
    import time

    found = {}
    for name, look in PLANS.items():
        begin = time.process_time()
        found[name] = look()
        print(name, round(time.process_time() - begin, 1), file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
