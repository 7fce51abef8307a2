"""The model a request names: ``llama:8b``, or a factory of the user's."""

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blocks._checks import check, fail
from blocks.sharding import OpGraph
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.scaled_graph import graphs_by_rows, scaled_graph

if TYPE_CHECKING:
    from recipes.plan.trace import TracedModule

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A module or what makes it, and what it is called with: positional and by name."""

Note = Callable[[str], None]

TRACED_ROWS = (2, 4)
"""Numbers of rows that are traced; sizes for others follow from them."""


def call_of(config: PlanConfig, rows: int, seed: int | None = None) -> Call:
    """The model, and inputs of so many rows.

    Args:
        seed: of the inputs of a family; on the meta device, without numbers, where None.

    Raises:
        ValueError: a model that there is not, or that does not heed a setting.
    """
    if is_factory(config.model):
        _check_own_inputs(config)
        return _from_factory(config.model, rows)
    return _from_family(config, rows, seed)


def is_factory(model: str) -> bool:
    """Whether a name is ``module:factory``: a path with a dot, or a module that can be found.

    A family is one whatever modules there are: ``bert:base`` beside a ``bert.py``.
    """
    path, colon, _ = model.partition(":")
    if not colon or not all(part.isidentifier() for part in path.split(".")):
        return False
    if "." in path:
        return True
    return not _is_family(model) and importlib.util.find_spec(path) is not None


def _check_own_inputs(config: PlanConfig) -> None:
    """A factory makes its module and inputs as it will."""
    for name in ("seq_len", "dtype"):
        value = getattr(config, name)
        expected = f"none with {config.model}, which makes its own inputs"
        check(value == getattr(PlanConfig, name), name, expected, value, "change the factory")


def _is_family(model: str) -> bool:
    from recipes.plan.families import families

    return model in families() or model.startswith("decoder:")


def layers_by_rows(
    config: PlanConfig, note: Note = lambda text: None
) -> Callable[[int], LayerChain]:
    """From the rows of a microbatch to the layers of the model; traced when first asked for.

    Raises:
        ValueError: a model that there is not, or that cannot be traced.
    """

    def step_of(rows: int) -> Call:
        note(f"tracing {config.model}, {rows} rows")
        return call_of(config, rows)

    return chains_of(step_of, optimizer=config.optimizer, gradient_dtype=config.gradient_dtype)


def traced_step(call: Callable[[int], Call], rows: int, **named: Any) -> "TracedModule":
    """The step of a microbatch as ``chains_of`` has planned it, to be run.

    Args:
        call: for so many rows.
        named: see ``trace``.

    Raises:
        ValueError: a model that cannot be traced, or whose numbers do not follow from its rows.
    """
    from recipes.plan.layers.scaled_trace import scaled_trace
    from recipes.plan.trace import trace

    if rows > 1:
        return trace(*call(rows), **named)
    few, more = (trace(*call(some), **named) for some in TRACED_ROWS)
    small, large = TRACED_ROWS
    try:  # dims of size 1 would be traced as other operations
        scaled_graph(few.graph, small, more.graph, large, rows)
    except ValueError:  # planned as it is traced
        return trace(*call(rows), **named)
    return scaled_trace(few, small, more, large, rows)


def chains_of(
    call: Callable[[int], Call],
    *,
    optimizer: str,
    gradient_dtype: str | None = None,
    loss: Callable[[Any], Any] | None = None,
    part: Callable[[OpGraph], OpGraph] = lambda graph: graph,
) -> Callable[[int], LayerChain]:
    """From rows to the layers of what is called.

    Args:
        call: for so many rows.
        optimizer, gradient_dtype, loss: see ``trace``; the dtype by its name.
        part: what is kept of the graph of a step.
    """
    missing: dict[int, int] = {}

    def graph_of(rows: int) -> OpGraph:
        from recipes.plan.layers.short_trace import short_trace
        from recipes.plan.trace import trace

        called = call(rows)
        wide = torch_dtype("gradient_dtype", gradient_dtype)
        named: dict[str, Any] = {"optimizer": optimizer, "gradient_dtype": wide, "loss": loss}
        graph, left_out = short_trace(*called, **named)
        graph = part(graph)
        if left_out and not _repeats(graph, left_out):
            left_out = 0
            graph = part(trace(*called, **named).graph)
        missing[rows] = left_out
        return graph

    at = graphs_by_rows(graph_of, TRACED_ROWS)

    def chain(rows: int) -> LayerChain:
        graph = at(rows)
        left_out = missing.get(rows, max(missing.values()))
        found = LayerChain.of(graph)
        if not left_out:
            return found
        return LayerChain.of(graph, num_layers=found.num_layers + left_out)

    return chain


def torch_dtype(name: str, text: str | None) -> Any:
    """The dtype a setting names; None for None.

    Raises:
        ValueError: it names none, or one of whole numbers.
    """
    import torch

    if text is None:
        return None
    dtype = getattr(torch, text, None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise fail(name, "a floating point dtype of torch", repr(text))
    return dtype


def _repeats(graph: OpGraph, left_out: int) -> bool:
    """Whether a layer of a short trace can stand for those left out."""
    found = LayerChain.of(graph)
    try:
        LayerChain.of(graph, num_layers=found.num_layers + left_out)
    except ValueError:
        return False
    return True


def _from_family(config: PlanConfig, rows: int, seed: int | None) -> Call:
    import torch

    from recipes.plan.families import families, family

    if not _is_family(config.model):
        known = families()
        near = difflib.get_close_matches(config.model, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"families are {', '.join(known)}"
        raise fail("model", "family:size or package.module:factory", repr(config.model), hint)
    dtype = torch_dtype("dtype", config.dtype)
    found = family(config.model)
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    inputs = found.inputs(rows, config.seq_len, generator=draw, dtype=dtype)
    return lambda: found.make().to(dtype), (), inputs


def _from_factory(name: str, rows: int) -> Call:
    """``package.module:factory`` of a function from the rows of a microbatch to (module, args,
    kwargs); the module may be one on the meta device, or a function that makes it."""
    path, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise fail("model", "package.module:factory", repr(name), str(error)) from error
    check(callable(found), "model", "package.module:factory", repr(name), "it cannot be called")
    try:
        made = found(rows)
    except Exception as error:
        error.add_note(f"while calling {name}({rows})")
        raise
    ok = isinstance(made, tuple) and len(made) == 3
    got = f"{len(made)} values" if isinstance(made, tuple) else type(made).__name__
    check(ok, f"{name}({rows})", "(module, args, kwargs)", got)
    module, args, kwargs = made
    ok = isinstance(args, tuple | list) and isinstance(kwargs, dict)
    got = f"({type(module).__name__}, {type(args).__name__}, {type(kwargs).__name__})"
    check(ok, f"{name}({rows})", "(module, a tuple, a dict)", got)
    return module, tuple(args), kwargs
