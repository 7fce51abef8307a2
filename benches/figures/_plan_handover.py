"""Figures of what plans are handed to: the placement of models that serve."""

from collections.abc import Iterator

from benches.figures.row import Measured, Row
from blocks.sched.profile import bundled_profile
from blocks.sharding import bundled_cluster
from recipes.plan.inference import InferenceConfig, InferencePlan, plan_inference
from recipes.plan.inference.profile import profile_of

COMMAND = "python -m benches.figures --area plan --nightly"
BERT = (
    "decoder:tiny,hidden_size=2048,num_layers=24,num_heads=32,num_kv_heads=32,norm=layer,"
    "intermediate_size=8192,gated_mlp=false,vocab_size=51200,max_positions=2048"
)
"""A decoder of the size of AlpaServe's BERT-1.3B."""


def rows() -> Iterator[Row]:
    yield Row(
        "a decoder of BERT-1.3B's size served on V100 (simulated from the cluster file) against "
        "AlpaServe's published profile, batch 1: latency of a configuration op x pp over that of "
        "one device, mean and largest relative error",
        "",
        COMMAND,
        _against_published,
        nightly=True,
    )


def _plan() -> InferencePlan:
    config = InferenceConfig(
        BERT,
        "p3.16xlarge",
        batch_sizes="1",
        seq_len=2048,
        prompts="2048",
        contexts="2048",
        dtype="float16",
    )
    return plan_inference(config, bundled_cluster("p3.16xlarge"))


def _against_published() -> Measured:
    ours, published = profile_of(_plan()), bundled_profile("bert-1.3b")
    errors = {}
    for configuration in set(ours.configurations) & set(published.configurations) - {(1, 1)}:
        got, want = (one.latency_s(configuration) / one.latency_s() for one in (ours, published))
        errors[configuration] = abs(got / want - 1)
    worst = max(errors, key=lambda one: errors[one])
    mean = sum(errors.values()) / len(errors)
    text = f"{mean:.0%}, {errors[worst]:.0%} ({worst}), of {len(errors)}"
    return Measured(text, None)
