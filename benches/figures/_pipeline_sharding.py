"""Figures of tensor parallelism: how far cut decoders are from whole ones, and what they send."""

import itertools
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from benches.figures.row import Measured, Row
from blocks.sharding import (
    Group,
    LocalGroup,
    Mesh,
    Partial,
    Replicate,
    Shard,
    ShardingSpec,
    plan_reshard,
    reference,
    reshard,
    run_local,
    vocab_cross_entropy,
)
from recipes.model import Decoder, ModelConfig, batched_attend, init_weights
from recipes.model.tensor_parallel import gather_state, sum_shared_gradients, tensor_parallel

COMMAND = "python -m benches.figures --area pipeline"
SEQ_LEN = 16


def rows() -> Iterator[Row]:
    yield Row(
        "tensor-parallel decoder against the whole one, fp64, 2, 4 and 8 ranks, 8 heads over 2: "
        "worst error of a gradient",
        "<= 1e-12",
        COMMAND,
        _worst_error,
    )
    yield Row(
        "bytes sent against declared, every step between two shardings of a 2 x 3 mesh",
        "equal",
        COMMAND,
        _bytes,
    )


def _worst_error() -> Measured:
    config = ModelConfig("llama", 101, 64, 96, 2, 8, 2, 8, SEQ_LEN)
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(101, (2, 2 * SEQ_LEN), generator=generator)

    def run(group: Group | None) -> dict[str, Tensor]:
        decoder = Decoder(config, dtype=torch.float64)
        init_weights(decoder, torch.Generator().manual_seed(0), std=0.2)
        cuts = {} if group is None else tensor_parallel(decoder, config, group, vocabulary=True)
        positions = torch.arange(SEQ_LEN).repeat(2)
        scores = decoder.logits(decoder(tokens, positions, batched_attend(config, SEQ_LEN)))
        if group is None:
            loss = torch.nn.functional.cross_entropy(scores, labels)
        else:
            loss = vocab_cross_entropy(scores, labels, config.vocab_size, group)
        loss.backward()
        if group is not None:
            sum_shared_gradients(decoder.named_parameters(), cuts, group)
        grads = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
        return grads if group is None else gather_state(grads, cuts, group)

    def work(rank: int, groups: Mapping[str, Group]) -> dict[str, Tensor]:
        return run(groups["tensor"])

    whole, worst = run(None), 0.0
    for size in (2, 4, 8):
        for grads in run_local(Mesh.of(tensor=size), work):
            for name, grad in whole.items():
                error = (grads[name] - grad).abs().max() / grad.abs().max()
                worst = max(worst, error.item())
    return Measured(f"{worst:.1e}", worst <= 1e-12)


def _bytes() -> Measured:
    mesh, shape, num_steps, wrong = Mesh.of(a=2, b=3), (12, 18), 0, 0
    kinds = (Replicate(), Shard(0), Shard(1), Partial())
    specs = [ShardingSpec(mesh, kind) for kind in itertools.product(kinds, repeat=2)]
    whole = torch.arange(math.prod(shape)).view(shape).float()
    for source, target in itertools.product(specs, specs):
        plan = plan_reshard(source, target)
        parts = reference.shard(whole, source)

        def work(
            rank: int,
            groups: Mapping[str, Group],
            source: ShardingSpec = source,
            target: ShardingSpec = target,
            parts: list[Tensor] = parts,
        ) -> int:
            reshard(parts[rank], shape, source, target, rank, groups)
            local = (group for group in groups.values() if isinstance(group, LocalGroup))
            return sum(group.num_bytes_sent for group in local)

        declared = sum(step.bytes(shape, 4) for step in plan)
        num_steps += len(plan)
        wrong += set(run_local(mesh, work)) != {declared}
    text = f"equal in {len(specs) ** 2 - wrong} of {len(specs) ** 2} plans, {num_steps} steps"
    return Measured(text, wrong == 0)
