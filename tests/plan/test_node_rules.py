"""Every operation of traced models, with the numbers it meets there, under every strategy.

What is audited is the whole way: the rule a call was given, and what a rank runs in its stead, on
parts whose elements lie in another order than they do in the whole.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from blocks.sharding import REPLICATE, Mesh, OpNode, strategy_of
from blocks.sharding.rule_audit import RankShare, audit_rule
from recipes.plan.execute import FxOperations, LocalCall
from recipes.plan.families import families, family
from recipes.plan.trace import TracedModule, run_call, trace

TINY = [name for name in families() if name.endswith(":tiny")]
DRAWN = ("dropout", "bernoulli", "rand")


class Candidate:
    """A group in an operation whose maximum over the ranks the audit takes afterwards."""

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        return tensor


def calls(traced: TracedModule, known: dict[int, Tensor]) -> Iterator[tuple[OpNode, list[Tensor]]]:
    """The operations of a step that differ, with what they read; ``known`` grows with it."""
    seen = set()
    for node in traced.graph.nodes:
        if node.role != "op":
            continue
        call, inputs = traced.ops[node.name].call, [known[value] for value in node.inputs]
        rest = fx.map_arg((call.args, call.kwargs), lambda one: None)
        key = str((call.target, rest, node.rule, [x.shape for x in inputs]))
        if key not in seen and call.op != "placeholder":
            yield node, inputs
        seen.add(key)
        known.update(zip(node.outputs, run_call(call, inputs), strict=True))


def audit(traced: TracedModule, node: OpNode, inputs: list[Tensor], mesh: Mesh) -> int:
    values = traced.graph.values
    read, made = ([values[i] for i in of] for of in (node.inputs, node.outputs))
    operations = FxOperations(traced.ops)

    def local(share: RankShare, *parts: Tensor) -> Any:
        groups: Any = dict.fromkeys(mesh.axes, Candidate())
        where = (share.strategy, tuple(read), tuple(made), mesh, share.rank, groups)
        # As a transposition leaves them: some of torch's kernels read them wrong, unwarned.
        strided = [x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim else x for x in parts]
        return operations.run(LocalCall(node, *where, key=(node.name,)), strided)

    def whole(*tensors: Tensor) -> Any:
        if not any(word in node.op for word in DRAWN):
            return run_call(traced.ops[node.name].call, list(tensors))
        alone = Mesh.of(alone=1)
        strategy = strategy_of(node.rule, (REPLICATE,))
        where = (strategy, tuple(read), tuple(made), alone, 0, {})
        return operations.run(LocalCall(node, *where, key=(node.name,)), tensors)

    return audit_rule(node.rule, inputs, whole, mesh, local=local)


def audit_family(name: str, meshes: Sequence[Mesh]) -> int:
    """Every different call of a tiny model in float64; how many strategies were tried."""
    model = family(name)
    torch.manual_seed(0)
    module = model.make().double()
    batch = model.inputs(generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    traced = trace(module, (), batch)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state |= dict(zip(traced.inputs, batch.values(), strict=True))
    known = {
        node.outputs[0]: state[node.name].detach()
        for node in traced.graph.nodes
        if node.role in ("input", "parameter")
    }
    tried, wrong = 0, []
    for node, inputs in calls(traced, known):
        try:
            tried += sum(audit(traced, node, inputs, mesh) for mesh in meshes)
        except Exception as error:
            wrong.append(f"{node.name} ({node.op}): {error}")
    assert not wrong, "\n".join(wrong)
    return tried


@pytest.mark.parametrize("name", ["mixtral:tiny", "unet:tiny", "dlrm:tiny"])
def test_parts_make_the_whole_of_every_call(name: str) -> None:
    assert audit_family(name, [Mesh.of(a=2)]) > 50


@pytest.mark.nightly
@pytest.mark.parametrize("name", TINY)
def test_parts_make_the_whole_in_every_family(name: str) -> None:
    assert audit_family(name, [Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=4), Mesh.of(a=2, b=2)]) > 50
