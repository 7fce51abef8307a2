"""``trace``: a module and example inputs in, a graph to plan and to run out."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from blocks.sharding import OpGraph
from recipes.plan.trace.broadcasts import drop_expansions
from recipes.plan.trace.causal_masks import recognise_causal
from recipes.plan.trace.contractions import contract
from recipes.plan.trace.convolutions import split_convolutions
from recipes.plan.trace.decompositions import decompositions
from recipes.plan.trace.depth import find_run, shorten
from recipes.plan.trace.duplicates import merge_duplicates
from recipes.plan.trace.editing import Editor
from recipes.plan.trace.expand import expand
from recipes.plan.trace.fake_module import fake_inputs, fake_module
from recipes.plan.trace.fills import simplify_fills
from recipes.plan.trace.joint_graph import capture, new_fake_mode
from recipes.plan.trace.loss_module import LossModule
from recipes.plan.trace.op_graph_of import GraphBuilder
from recipes.plan.trace.origin import origins
from recipes.plan.trace.repeated_blocks import Blocks, find_block_lists
from recipes.plan.trace.traced_module import TracedModule
from recipes.plan.trace.unflatten import unflatten
from recipes.plan.trace.untraceable import Untraceable
from recipes.plan.trace.views import simplify_views

_LOG = logging.getLogger(__name__)

_TALKATIVE = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


def trace(
    module: nn.Module | Callable[[], nn.Module],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    optimizer: str = "adamw",
    gradient_dtype: torch.dtype | None = None,
    whole: bool = False,
) -> TracedModule:
    """The forward and backward pass of a module's loss, as operations that can be planned.

    Nothing is computed and no weight is allocated; the module is not changed.

    Args:
        module: any; it may stand on the meta device, or be a function that makes it.
        args, kwargs: what it is called with; only shapes and dtypes of tensors count.
        loss: from the module's output to a scalar; by default the output itself, its ``loss``, or
            the first of a tuple.
        optimizer: name of the update's operation.
        gradient_dtype: what gradients are summed in where parameters are narrower; None for the
            parameters' own.
        whole: trace every layer. By default, of a long run of equal blocks a few are traced and
            the others are made from one in their middle, after a look at whether the two in the
            middle do the same; the graph is the same, sooner.

    Raises:
        Untraceable: control flow or shapes that depend on values of tensors; it names the line.

    >>> layer = torch.nn.Linear(8, 4)
    >>> traced = trace(layer, (torch.empty(2, 8),), loss=lambda y: y.square().sum())
    >>> [node.op for node in traced.graph.nodes if node.role == "op"][:3]
    ['ones', 'aten.einsum.default', 'aten.add.Tensor']
    """
    given = (tuple(args), dict(kwargs or {}))
    if not whole:
        try:
            with _quiet():
                return _trace(module, given, loss, optimizer, gradient_dtype, shallow=True)
        except Untraceable:
            raise
        except Exception as error:  # code that counts its layers can fail in any way
            _LOG.info("every layer is traced: %s", error)
    with _quiet():
        return _trace(module, given, loss, optimizer, gradient_dtype, shallow=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own words on what fails where shapes are worked out."""
    logs = [logging.getLogger(name) for name in _TALKATIVE]
    were = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, was in zip(logs, were, strict=True):
            log.disabled = was


def _trace(
    module: nn.Module | Callable[[], nn.Module],
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    loss: Callable[[Any], Tensor] | None,
    optimizer: str,
    gradient_dtype: torch.dtype | None,
    shallow: bool,
) -> TracedModule:
    fake_mode = new_fake_mode()
    fake = fake_module(module, fake_mode)
    args, kwargs = fake_inputs(inputs, fake_mode)
    lists = find_block_lists(fake)
    runs = [run for one in lists if shallow and (run := find_run(one)) is not None]
    for run in runs:
        shorten(fake, run)
    joint = capture(
        LossModule(fake, loss), args, kwargs, fake_mode, decompositions=decompositions()
    )
    _normalise(Editor(joint, fake_mode), Blocks(find_block_lists(fake) if runs else lists))
    found = origins(joint)
    for run in runs:
        joint, found = expand(joint, found, run)
    blocks = Blocks(lists)
    names = _names_of((args, kwargs))
    builder = GraphBuilder(joint, optimizer, gradient_dtype, names, blocks.of, found)
    graph = builder.build()
    return TracedModule(
        graph,
        joint,
        builder.ops,
        builder.placeholders,
        builder.params,
        tuple(builder.inputs),
        blocks.kinds,
        fingerprint_of(graph),
    )


def _normalise(editor: Editor, blocks: Blocks) -> None:
    simplify_fills(editor)
    simplify_views(editor)
    split_convolutions(editor)
    recognise_causal(editor)
    contract(editor)
    simplify_views(editor)
    drop_expansions(editor)
    unflatten(editor)
    simplify_views(editor)
    found = origins(editor.graph_module)
    merge_duplicates(editor, lambda node: blocks.of(found[node].module))
    editor.graph.lint()


def _names_of(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[str]:
    """What the arguments are called: ``args.0``, ``labels``, ``kwargs.batch.x``."""
    leaves, _ = pytree.tree_flatten_with_path(inputs)
    names = []
    for path, _ in leaves:
        parts = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        names.append(".".join(["args", *parts[1:]] if parts[0] == "0" else parts[1:]))
    return names


def fingerprint_of(graph: OpGraph) -> str:
    """Sixteen hexadecimal digits of a digest of the graph without its lines of code."""
    data = graph.to_json()
    for node in data["nodes"]:
        node.pop("source")
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
