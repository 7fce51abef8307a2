"""The joint forward and backward graph of a module, captured without any memory for tensors."""

import contextlib
import dataclasses
import functools
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import fx, nn
from torch._functorch._aot_autograd import descriptors as desc
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from blocks._checks import fail
from recipes.plan.trace.loss_module import LossModule
from recipes.plan.trace.origin import note_origins
from recipes.plan.trace.untraceable import check_fixed, naming_the_line

PlaceKind = Literal["parameter", "buffer", "input", "tangent", "loss", "gradient"]


@dataclasses.dataclass(frozen=True)
class Place:
    """What a placeholder of the joint graph takes, or what one of its outputs gives.

    kind: ``buffer`` is among the outputs too: its value after the step.
    name: of the parameter or buffer; of an input its number among the leaves of
        ``(args, kwargs)``; empty for tangent and loss.
    """

    kind: PlaceKind
    name: str = ""


def new_fake_mode() -> FakeTensorMode:
    """Where tensors have a shape and a dtype and no memory."""
    _begin_autograd()
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


def capture(
    module: LossModule,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    fake_mode: FakeTensorMode,
    *,
    decompositions: Mapping[Any, Callable[..., Any]],
) -> fx.GraphModule:
    """The loss and the gradients of all parameters, as one graph of aten operations.

    Every placeholder has its ``Place`` in ``meta["place"]``; the output node has a tuple of them
    there; every call has its ``Origin`` in ``meta["origin"]``. What is not asked for (gradients of
    inputs) is not among the outputs.

    Args:
        module, args, kwargs: of fake tensors of ``fake_mode``.

    Raises:
        Untraceable: control flow that depends on values.
        ValueError: a tensor that is no parameter, buffer or input.
    """
    with naming_the_line(), _portable(), contextlib.ExitStack() as stack, fake_mode:
        words = io.StringIO()  # torch prints the whole graph before it raises
        with contextlib.redirect_stderr(words):
            program = torch.export.export(module, args, dict(kwargs), strict=False)
        sys.stderr.write(words.getvalue())
        _check_registered(program)
        check_fixed(program.graph)
        joint = aot_export_joint_with_descriptors(
            stack,
            _as_module(program),
            args,
            dict(kwargs),
            decompositions=dict(decompositions),
        )
    graph_module = joint.graph_module
    if not isinstance(graph_module, fx.GraphModule):
        raise fail("joint graph", "a GraphModule", type(graph_module).__name__)
    _name_places(graph_module, _first_names(module))
    note_origins(graph_module)
    return graph_module


def _check_registered(program: torch.export.ExportedProgram) -> None:
    """No tensor of the module is read that is neither a parameter nor a buffer."""
    buffers = program.graph_signature.buffers  # constants, too, where they are not persistent
    for name, value in program.constants.items():
        if isinstance(value, FakeTensor) and name not in buffers:
            attribute = name.removeprefix("module.")
            listed = attribute.rpartition(".")[2].startswith("lifted_tensor")
            got = "one in a list or dict" if listed else f"the attribute {attribute}"
            expected = "parameters, buffers and inputs"
            hint = "keep it with register_buffer(..., persistent=False), or hand it to forward"
            raise fail("tensors that the module reads", expected, got, hint)


@contextlib.contextmanager
def _portable() -> Iterator[None]:
    """Without oneDNN's operations, which are those of this CPU and not of the devices that are
    planned for, and without torch's warnings of how weights of recurrent layers are kept."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
        warnings.filterwarnings("ignore", "The tensor attributes")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


@functools.cache
def _begin_autograd() -> None:
    """The first backward pass of a process, before there is a fake mode.

    Later, torch 2.11 takes there to be an accelerator and starts a thread for it, and processes
    that are forked then can do no backward pass.
    """
    torch.zeros((), requires_grad=True).mul(2).backward()


def _first_names(module: nn.Module) -> dict[str, str]:
    """Of parameters and buffers that have several names: each name -> the first one."""
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _as_module(program: torch.export.ExportedProgram) -> nn.Module:
    return program.module(check_guards=False)


def _name_places(graph_module: fx.GraphModule, names: Mapping[str, str]) -> None:
    graph = graph_module.graph
    for node in graph.find_nodes(op="placeholder"):
        node.meta["place"] = _place_of_input(node.meta["desc"], names)
    output = graph.output_node()
    values = output.args[0]
    assert isinstance(values, (list, tuple))
    kept = [
        (value, place)
        for value, described in zip(values, output.meta["desc"], strict=True)
        if isinstance(value, fx.Node) and (place := _place_of_output(described, names)) is not None
    ]
    output.args = (tuple(value for value, _ in kept),)
    output.meta["place"] = tuple(place for _, place in kept)


def _place_of_input(described: Any, names: Mapping[str, str]) -> Place:
    match described:
        case desc.ParamAOTInput(target=name):
            return Place("parameter", names.get(name, name).removeprefix(LossModule.PREFIX))
        case desc.BufferAOTInput(target=name):
            return Place("buffer", names.get(name, name).removeprefix(LossModule.PREFIX))
        case desc.PlainAOTInput(idx=index):
            return Place("input", str(index))
        case desc.TangentAOTInput():
            return Place("tangent")
    raise fail("input of the joint graph", "a parameter, buffer or argument", described)


def _place_of_output(described: Any, names: Mapping[str, str]) -> Place | None:
    match described:
        case desc.PlainAOTOutput():
            return Place("loss")
        case desc.GradAOTOutput(grad_of=desc.ParamAOTInput(target=name)):
            return Place("gradient", names.get(name, name).removeprefix(LossModule.PREFIX))
        case desc.InputMutationAOTOutput(mutated_input=desc.BufferAOTInput(target=name)):
            return Place("buffer", names.get(name, name).removeprefix(LossModule.PREFIX))
        case desc.GradAOTOutput():
            return None
    raise fail("output of the joint graph", "a loss, a gradient or a buffer", described)
