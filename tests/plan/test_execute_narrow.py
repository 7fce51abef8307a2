"""Planned steps of bfloat16 parameters: sums of gradients, copies and moments are float32."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from blocks.sharding import Group, Mesh, TensorValue, count, run_local
from blocks.sharding.intra_op.pose import adamw_bytes
from recipes.plan.execute import SGD, AdamW, FxOperations, PlannedModule, state_of
from recipes.plan.execute.optimizer import new_state
from recipes.plan.execute.twins.attention import attended_by_blocks, attention_gradient_by_blocks
from recipes.plan.search.candidates import state_bytes
from recipes.plan.trace import trace
from tests.plan.execute_cases import Case, transformer
from tests.plan.executing import assert_as_counted, random_program

LR = 1e-2


@pytest.fixture(scope="module")
def case() -> Case:
    return transformer(torch.bfloat16, torch.float32)


def test_sums_of_gradients_and_what_the_optimizer_keeps_are_priced_as_float32(case: Case) -> None:
    graph = case.traced.graph
    program = random_program(case.traced, Mesh.of(a=1), 0)
    counts = count(program, 0)
    assert counts.gradient_bytes == 2 * counts.parameter_bytes
    assert counts.moment_bytes == 6 * counts.parameter_bytes  # two moments and the copy
    sums = [graph.values[n.outputs[0]] for n in graph.nodes if n.role == "accumulate"]
    assert {(value.dtype, value.itemsize) for value in sums} == {("float32", 4)}
    wide = transformer(torch.float64, torch.float32).traced.graph
    assert {wide.values[n.outputs[0]].dtype for n in wide.nodes if n.role == "accumulate"} == {
        "float64"
    }


@pytest.mark.parametrize(("optimizer", "num_moments"), [("adamw", 2), ("momentum", 1), ("sgd", 0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_the_optimizer_keeps_is_priced_as_it_is_made(
    dtype: torch.dtype, optimizer: str, num_moments: int
) -> None:
    made = new_state(
        AdamW() if optimizer == "adamw" else SGD(momentum=0.9 * num_moments),
        torch.zeros(3, 5, dtype=dtype),
    )
    name = str(dtype).removeprefix("torch.")
    value = TensorValue("weight", (3, 5), name, dtype.itemsize)
    kept = sum(one.nbytes for one in made.values())
    assert 15 * state_bytes(optimizer)(value) == kept
    assert optimizer != "adamw" or 15 * adamw_bytes(value) == kept


def test_traffic_work_and_memory_are_as_counted(case: Case) -> None:
    assert_as_counted(case, [(Mesh.of(a=2, b=2), 1)])


def by_torch(case: Case, state: Mapping[str, Tensor], steps: list[list]) -> dict[str, Tensor]:
    """The float32 copies after steps of descent, along float32 sums of narrow gradients."""
    module = copy.deepcopy(case.module)
    masters = {name: nn.Parameter(state[name].clone()) for name, _ in module.named_parameters()}
    optimizer = torch.optim.SGD(masters.values(), lr=LR, momentum=0.9)
    for microbatches in steps:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(masters[name])
        optimizer.zero_grad()
        for microbatch in microbatches:
            module.zero_grad()
            (case.call(module, microbatch) / len(microbatches)).backward()
            for name, parameter in module.named_parameters():
                grad, wide = parameter.grad, masters[name]
                assert grad is not None
                wide.grad = grad.float() if wide.grad is None else wide.grad + grad.float()
        optimizer.step()
    return {name: one.detach() for name, one in masters.items()}


def test_steps_are_those_of_float32_copies(case: Case) -> None:
    exact = {name: one.float() + 1e-4 for name, one in state_of(case.module).items()}
    steps = [[case.batch(0), case.batch(1)], [case.batch(2)], [case.batch(3)]]
    expected = by_torch(case, exact, steps)
    program = random_program(case.traced, Mesh.of(a=2), 3)

    def work(rank: int, groups: Mapping[str, Group]) -> dict[str, Tensor]:
        operations, descent = FxOperations(case.traced.ops), SGD(LR, momentum=0.9)
        module = PlannedModule(program, operations, rank, groups, exact, optimizer=descent)
        for microbatches in steps:
            module.step(microbatches)
        module.check_invariants()
        found = {}
        for name, state in module.state.moments.items():
            spec, shape = module.state.update_spec(name), module.machine.shape(name)
            every = type(spec).replicated(spec.mesh)
            found[name] = module.machine.moved(state["master"], shape, spec, every)
            kept = module.state.parameters[name]
            rounded = module.machine.cut(found[name].bfloat16(), module.machine.spec(name))
            assert kept.dtype == torch.bfloat16
            assert torch.equal(kept, rounded), name
        return found

    for found in run_local(program.mesh, work):
        assert set(found) == set(expected)
        for name, want in expected.items():
            moved = (want - exact[name]).norm()
            assert (found[name] - want).norm() < 0.03 * moved, name


def test_sums_of_a_frequent_token_are_not_rounded_away() -> None:
    table = nn.Embedding(4, 2).to(torch.bfloat16)
    index = torch.zeros(3000, dtype=torch.int64)
    traced = trace(table, (index,), loss=lambda rows: rows.float().sum())
    program = random_program(traced, Mesh.of(a=1), 0)

    def work(rank: int, groups: Mapping[str, Group]) -> Tensor:
        operations = FxOperations(traced.ops)
        module = PlannedModule(program, operations, rank, groups, state_of(table))
        module.accumulate({"args.0": index})
        return module.gradients()["weight"]

    (found,) = run_local(program.mesh, work)
    assert found[0].tolist() == pytest.approx([3000, 3000], rel=2**-8)
    assert not found[1:].any()


@pytest.mark.parametrize("kind", ["causal", "cut", "mask", "blank", "plain"])
def test_attention_on_accelerators_is_that_of_the_cpu(kind: str) -> None:
    """The operations that take the CPU kernel's place, run here."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = torch.randn(4, 2, 3, 8, 16, generator=generator)
    first = 3 if kind == "cut" else 0
    mask = torch.randn(2, 1, 8, 8, generator=generator) if kind in ("mask", "blank") else None
    if kind == "blank" and mask is not None:
        mask[1, :, 3:5] = -torch.inf  # padding that sees nothing
    causal = kind in ("causal", "cut")
    aten = torch.ops.aten
    forward = aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = forward(query, key, value, 0.0, causal, attn_mask=mask)
    if first:  # gradients of the other rows add nothing to those of the keys
        grad[:, :, :first] = 0
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    wanted = backward(grad, query, key, value, out, lse, 0.0, causal, attn_mask=mask)
    rows = slice(first, None)
    ours = (query[:, :, rows], key, value)
    made, logs = attended_by_blocks(*ours, first, causal, mask, None)
    torch.testing.assert_close(made, out[:, :, rows])
    torch.testing.assert_close(logs, lse[:, :, rows])
    found = attention_gradient_by_blocks(
        grad[:, :, rows], *ours, made, logs, first, causal, mask, None
    )
    torch.testing.assert_close(found[0], wanted[0][:, :, rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-4, atol=1e-5)


def test_every_tensor_is_made_where_the_rank_computes() -> None:
    """What does not name its device is made on another one here, which mixes with nothing."""
    case = transformer(torch.float32)
    state, batch = case.state, case.batch(0)
    program = random_program(case.traced, Mesh.of(a=2), 5)

    def work(rank: int, groups: Mapping[str, Group]) -> tuple[float, set[str]]:
        with torch.device("meta"):
            operations = FxOperations(case.traced.ops)
            module = PlannedModule(program, operations, rank, groups, state, device="cpu")
            loss = module.step([batch, batch]).item()
        held = [*module.state.parameters.values(), *module.state.buffers.values()]
        held += [one for moments in module.state.moments.values() for one in moments.values()]
        return loss, {one.device.type for one in held}

    for loss, devices in run_local(program.mesh, work):
        assert devices == {"cpu"}
        assert loss == pytest.approx(case.call(case.module, batch).item(), rel=1e-4)


class Places(nn.Module):
    """Adds numbers made on the spot."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight + torch.arange(4, device=x.device)).square().sum()


def test_what_a_trace_makes_is_made_where_the_rank_computes() -> None:
    x = torch.ones(2, 4)
    traced = trace(Places(), (x,))
    assert any(node.op.startswith("aten.arange") for node in traced.graph.nodes)
    program = random_program(traced, Mesh.of(a=1), 0)

    def work(rank: int, groups: Mapping[str, Group]) -> set[str]:
        operations, state = FxOperations(traced.ops), {"weight": torch.ones(4)}
        module = PlannedModule(program, operations, rank, groups, state, device="meta")
        loss = module.step([{"args.0": x}])
        return {loss.device.type, module.state.parameters["weight"].device.type}

    assert run_local(program.mesh, work) == [{"meta"}]
