"""``PlannedStage``: a stage of a pipeline whose passes are those of a program."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blocks._checks import check
from blocks.pipeline import SliceContext
from recipes.plan.execute.cross_mesh_transport import TOKEN, Parcels
from recipes.plan.execute.machine import Tensors
from recipes.plan.execute.planned_module import PlannedModule
from recipes.plan.execute.routes import Cargo, Routes, StageProgram, Way


class PlannedStage(nn.Module):
    """A ``StageModule`` for ``blocks.pipeline.Executor``.

    The executor passes tokens and their gradients between stages, and so keeps the order; the
    values go through the parcels. A microbatch is a sequence of one slice, whose state holds what
    the forward pass saved. Gradients add up in the accumulators of ``module``, as the plan lays
    them, not in ``.grad``.
    """

    def __init__(
        self,
        stage: int,
        program: StageProgram,
        module: PlannedModule,
        routes: Routes,
        parcels: Parcels,
    ) -> None:
        """
        Args:
            stage: which one.
            module: of ``program.program``.
            routes: of the pipeline.
            parcels: of this device.
        """
        super().__init__()
        self.stage, self.cut, self.module = stage, program.cut, module
        self.loss_scale = 1.0
        self.anchor = nn.Parameter(torch.zeros(()))
        """So that there is something to have a gradient of; it never has any."""
        self._routes, self._parcels = routes, parcels
        self._summed = routes.summed(stage)
        self._sums: Tensors = {}
        self._standing: Tensors = {}

    def begin_step(self) -> None:
        """Forget what went once in the step before: parameters of other stages, sums for them."""
        self._sums.clear()
        self._standing.clear()

    def forward(self, *tokens: Tensor, context: SliceContext) -> Tensor:
        check(context.slice == 0, "slice", "0: planned stages take whole microbatches", context)
        state = context.state
        if "received" not in state:
            state["received"] = self._received("forward", context.sequence)
        function: Any = _Passes.apply
        return function(self.anchor, self, context, torch.is_grad_enabled(), *tokens)

    def run_forward(self, context: SliceContext, keep: bool) -> Tensor:
        """The forward pass of a microbatch: its loss, or a token where the stage has none."""
        module, state = self.module, context.state
        held = module.begin(context.data)
        held.update(state.pop("received") if keep else state["received"])  # else there is a next
        key = (module.num_updates, context.sequence)
        module.machine.run(module.program.forward, held, key=key, loss_scale=self.loss_scale)
        results = module.take_results(held, "forward")
        if "sent" not in state:  # the second time is a recomputation
            self._send("forward", context.sequence, results)
            module.state.renew_buffers(results)
            state["sent"] = True
        if keep:
            state["held"] = held
        loss = module.loss_of(results)
        return torch.zeros(TOKEN.shape, dtype=TOKEN.dtype) if loss is None else loss

    def run_backward(self, context: SliceContext) -> None:
        """The backward pass of a microbatch."""
        module, state = self.module, context.state
        held = cast(Tensors, state.pop("held"))
        held.update(self._received("backward", context.sequence))
        key = (module.num_updates, context.sequence)
        module.machine.run(module.program.backward, held, key=key, loss_scale=self.loss_scale)
        self._send("backward", context.sequence, module.take_results(held, "backward"))

    def _send(self, way: Way, sequence: int, results: Mapping[int, Tensor]) -> None:
        """Lay down what other stages want."""
        named = {name: results[at] for at, name in self.module.program.results if at in results}
        for name in self._summed & named.keys():
            self._add(name, named.pop(name))
        for target in range(self._routes.num_stages):
            cargo = self._routes.of(way, self.stage, target, sequence)
            if cargo:
                slot = (way, self.stage, target, sequence)
                self._parcels.leaving[slot] = {
                    c.value: self._sum(c) if c.source_name in self._sums else named[c.source_name]
                    for c in cargo
                }

    def _add(self, name: str, part: Tensor) -> None:
        """To the sum of what leaves once a step, which is taken in float32 at least."""
        if name in self._sums:
            self._sums[name] += part
        else:
            wide = torch.promote_types(part.dtype, torch.float32)
            self._sums[name] = part.to(wide, copy=True)

    def _sum(self, cargo: Cargo) -> Tensor:
        """Of all microbatches, as it goes to another stage."""
        return self._sums[cargo.source_name].to(getattr(torch, cargo.dtype))

    def _received(self, way: Way, sequence: int) -> dict[str, Tensor]:
        """What arrived, by the names of this stage's program."""
        found: dict[str, Tensor] = {}
        for source in range(self._routes.num_stages):
            slot = (way, source, self.stage, sequence)
            cargo = self._routes.of(way, source, self.stage, sequence)
            parts = self._parcels.arrived.pop(slot, None)
            if parts is None and cargo:  # from a stage of the same devices
                there = self._parcels.leaving.pop(slot)
                parts = {c.value: self._moved(c, there[c.value]) for c in cargo}
            for one in cargo:
                assert parts is not None
                found[one.target_name] = parts[one.value]
        return {**found, **self._once(way, found)}

    def _once(self, way: Way, came: Tensors) -> Tensors:
        """What comes once a step, for each microbatch: parameters as they came with the first, and
        zeros for gradients whose sum comes with the last."""
        machine = self.module.machine
        found: Tensors = {}
        for cargo in self._routes.once(way, self.stage):
            name = cargo.target_name
            if way == "forward" and name in came:
                self._standing[name] = came[name]
            elif way == "forward":
                found[name] = self._standing[name]
            elif name not in came:
                shape, dtype = machine.local_shape(name), getattr(torch, cargo.dtype)
                found[name] = torch.zeros(shape, dtype=dtype, device=machine.device)
        return found

    def _moved(self, cargo: Cargo, part: Tensor) -> Tensor:
        """From one stage of these devices to another."""
        machine = self.module.machine
        return machine.moved(part, cargo.plan.shape, cargo.plan.source, cargo.plan.target)


class _Passes(torch.autograd.Function):
    """A stage's two passes as one differentiable operation on tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        stage: PlannedStage,
        context: SliceContext,
        keep: bool,
        *tokens: Tensor,
    ) -> Tensor:
        ctx.stage, ctx.context, ctx.num_tokens = stage, context, len(tokens)
        return stage.run_forward(context, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.stage.run_backward(ctx.context)
        return (None, None, None, None, *(torch.zeros(()) for _ in range(ctx.num_tokens)))
