"""The model a serving plan is for: from rows and tokens to the layers of a forward pass."""

from collections.abc import Callable, Mapping
from typing import Any

from blocks._checks import fail
from recipes.plan.config import PlanConfig
from recipes.plan.inference.config import InferenceConfig
from recipes.plan.inference.forward_graph import forward_graph
from recipes.plan.layers.chain import LayerChain
from recipes.plan.model import Call, call_of, chains_of, is_factory

GENERATE = ("decoder", "llama", "gpt2", "mixtral")
"""Families that go on token by token, and keep keys and values for it."""
ENCODE = ("bert",)

Note = Callable[[str], None]


def generates(model: str) -> bool:
    """Whether a model is one of those that decode token by token."""
    return model.partition(":")[0] in GENERATE


def tokens_of(config: InferenceConfig) -> int:
    """Tokens of a request where none are asked for."""
    if is_factory(config.model):
        raise fail("seq_len", "the tokens of the factory's rows", None)
    from recipes.plan.families import family

    found = family(config.model).seq_len
    if found is None:
        raise _no_requests(config.model)
    return found


def served_layers(
    config: InferenceConfig, *, seq_len: int | None = None, note: Note = lambda text: None
) -> Callable[[int], LayerChain]:
    """From the number of requests in a batch to the layers of its forward pass.

    Args:
        seq_len: tokens of a request, instead of the config's.

    Raises:
        ValueError: a model that there is not, that cannot be traced, or that serves no requests.
    """
    length = seq_len or config.seq_len
    asked = PlanConfig(
        *(config.model, config.cluster),
        seq_len=None if is_factory(config.model) else length,
        dtype=config.dtype,
    )

    def call(rows: int) -> Call:
        note(f"tracing {config.model}, {rows} rows of {length or 'its'} tokens")
        return _without_labels(config.model, call_of(asked, rows))

    return chains_of(call, optimizer="sgd", loss=sum_of_scores, part=forward_graph)


def _without_labels(model: str, call: Call) -> Call:
    """A family's call, its labels left out; a factory's as it is."""
    module, _, kwargs = call
    kind = model.partition(":")[0]
    if is_factory(model):
        return call
    if kind == "decoder":
        return _ServedDecoder(module), (), {"inputs": kwargs["inputs"]}
    if kind not in (*GENERATE, *ENCODE):
        raise _no_requests(model)
    return module, (), {"input_ids": kwargs["input_ids"]}


def _no_requests(model: str) -> ValueError:
    known = ", ".join((*GENERATE, *ENCODE))
    return fail("model", f"a language model ({known}) or a factory's", repr(model))


class _ServedDecoder:
    """Makes a decoder whose output is the scores of every row's next token."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self) -> Any:
        module = self._make()
        module.forward = module.next_scores
        return module


def sum_of_scores(output: Any) -> Any:
    """The sum of a model's scores: of its ``logits``, or of the tensor it returns.

    Raises:
        ValueError: neither is there.
    """
    found: Any = output.get("logits") if isinstance(output, Mapping) else output
    found = getattr(found, "logits", found)
    if not (hasattr(found, "sum") and found.is_floating_point()):
        raise fail("output of the model", "scores: a tensor, or logits", type(output).__name__)
    return found.sum()
