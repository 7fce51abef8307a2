"""The losses, forward and backward: against full logits, and against torch.compile of chunks."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benches.shapes import LLAMA_8B, LLAMA_200M, TINY, ModelShape
from blocks import ops
from tests.numerics import assert_close

ON_GPU = torch.cuda.is_available()
MODELS = [TINY, LLAMA_200M, *([LLAMA_8B] if ON_GPU else [])]
LINEAR = ["blocks", "full logits", *(["compiled chunks"] if ON_GPU else [])]
CHUNK_ROWS = 1024
Losses = dict[str, Callable[[], Tensor]]


class Case(NamedTuple):
    hidden: Tensor
    weight: Tensor
    labels: Tensor


def make(device: torch.device, model: ModelShape) -> Case:
    dtype, num_rows = torch.bfloat16, 512 if device.type == "cpu" else 8192
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, model.hidden_size, generator=generator)
    weight = torch.randn(model.vocab_size, model.hidden_size, generator=generator)
    labels = torch.randint(0, model.vocab_size, (num_rows,), generator=generator)
    leaves = [t.to(device, dtype) for t in (hidden, weight / model.hidden_size**0.5)]
    return Case(leaves[0].requires_grad_(), leaves[1].requires_grad_(), labels.to(device))


def linear_losses(case: Case) -> Losses:
    hidden, weight, labels = case

    def by_chunks() -> Tensor:
        parts = zip(hidden.split(CHUNK_ROWS), labels.split(CHUNK_ROWS), strict=True)
        total = [F.cross_entropy((x @ weight.T).float(), y, reduction="sum") for x, y in parts]
        return torch.stack(total).sum() / len(labels)

    return {
        "blocks": lambda: ops.linear_cross_entropy(hidden, weight, labels),
        "full logits": lambda: F.cross_entropy((hidden @ weight.T).float(), labels),
        "compiled chunks": torch.compile(by_chunks),
    }


@pytest.mark.parametrize("how", LINEAR)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def bench_linear_cross_entropy(timed, device: torch.device, model: ModelShape, how: str) -> None:
    case = make(device, model)
    leaves = (case.hidden, case.weight)
    losses = linear_losses(case)
    exact = ops.linear_cross_entropy(*case, impl="reference")
    assert_close(losses[how](), exact, dtype=torch.bfloat16)
    num_rows, hidden_size = case.hidden.shape
    work = ops.linear_cross_entropy_work(num_rows, hidden_size, model.vocab_size, 2)
    timed(lambda: torch.autograd.grad(losses[how](), leaves), work=work, how=how, model=model.name)


@pytest.mark.parametrize("how", ["blocks", "torch"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def bench_cross_entropy(timed, device: torch.device, model: ModelShape, how: str) -> None:
    num_rows = 8192 if device.type != "cpu" else 256
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, model.vocab_size, generator=generator).to(device, torch.bfloat16)
    labels = torch.randint(0, model.vocab_size, (num_rows,), generator=generator).to(device)
    expected = ops.cross_entropy(logits[:16], labels[:16], impl="reference")
    assert_close(ops.cross_entropy(logits[:16], labels[:16]), expected)
    leaf = logits.requires_grad_()

    def ours() -> object:  # the same memory again and again: time does not depend on contents
        loss = ops.cross_entropy(leaf, labels, inplace=True)
        return torch.autograd.grad(loss, leaf)

    def theirs() -> object:
        return torch.autograd.grad(F.cross_entropy(leaf.float(), labels), leaf)

    work = ops.cross_entropy_work(num_rows, model.vocab_size, 2)
    timed(ours if how == "blocks" else theirs, work=work, how=how, model=model.name)
