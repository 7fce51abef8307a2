"""Figures of tracing: that traces compute what modules do, and what they take."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benches.figures.row import Measured, Row
from recipes.plan.families import families, family
from recipes.plan.trace import interpret, trace

COMMAND = "python -m benches.figures --area plan"
QUICK = ("mlp", "llama", "gpt2", "bert", "mixtral", "wide-resnet", "unet", "dlrm")
TINY = tuple(name for name in families() if name.endswith(":tiny"))


def rows() -> Iterator[Row]:
    for names, nightly in ((tuple(f"{kind}:tiny" for kind in QUICK), False), (TINY, True)):
        yield Row(
            f"loss and all gradients of {len(names)} tiny families ({_kinds(names)}) from their "
            "traces, float64, against autograd: largest relative error (1e-6 where the model "
            "itself casts to float32)",
            "1e-9, with casts 1e-6",
            COMMAND,
            lambda names=names: _reproduced(names),
            nightly,
        )
    for name, limit_s in (("llama:8b", 10.0), ("llama:70b", 20.0)):
        yield Row(
            f"a training step of {name} (8 x 8192 tokens) traced into a graph with a rule for "
            "every operation, CPU seconds of one core",
            f"<= {limit_s:.0f} s",
            COMMAND,
            lambda name=name, limit_s=limit_s: _traced(name, limit_s),
        )


def _kinds(names: tuple[str, ...]) -> str:
    return ", ".join(name.removesuffix(":tiny") for name in names)


def _reproduced(names: tuple[str, ...]) -> Measured:
    exact, cast = 0.0, 0.0
    for name in names:
        error = _error(name)
        if name.split(":")[0] in ("llama", "gpt2", "mixtral", "mamba2"):
            cast = max(cast, error)
        else:
            exact = max(exact, error)
    return Measured(f"{exact:.0e}, with casts {cast:.0e}", exact <= 1e-9 and cast <= 1e-6)


def _error(name: str) -> float:
    torch.manual_seed(0)
    model = family(name)
    module = model.make().double()
    inputs = model.inputs(generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    traced = trace(module, (), inputs)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {key: value.detach().clone() for key, value in state.items()}
    loss, gradients, _ = interpret(traced, state, inputs)
    output = module(**inputs)
    wanted = output if isinstance(output, Tensor) else output.loss
    wanted.backward()
    made = [(p.grad, gradients[key]) for key, p in module.named_parameters() if p.grad is not None]
    scale = max(float(grad.norm()) for grad, _ in made)
    worst = max(float((grad - got).norm()) for grad, got in made)
    return max(abs(float(loss / wanted.detach()) - 1), worst / scale)


def _traced(name: str, limit_s: float) -> Measured:
    model = family(name)
    begin = time.process_time()
    traced = trace(model.make, (), model.inputs())
    seconds = time.process_time() - begin
    count = len(traced.graph.nodes)
    return Measured(f"{seconds:.1f} s, {count:,} nodes", seconds <= limit_s)
