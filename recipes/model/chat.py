"""Chat templates: Jinja programs that come with a model and turn messages into its prompt.

They are rendered as transformers renders them, in Jinja's immutable sandbox. The sandbox stops a
template from reaching Python, not from spending time and memory: the processor time, the length of
the result, repeated sequences and powers are bounded here, other ways of filling memory are not. So
a template is taken from a model folder, which is trusted to that degree, and never from a request.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from blocks._checks import fail
from recipes.model.end_after import TookTooLong, end_after

MAX_PROMPT_CHARS = 16 << 20
MAX_RENDER_S = 2.0
"""Processor time one conversation may take; the templates of models take about a millisecond."""
CODE = "<template>"
"""What Jinja calls the file of the code it makes of a text."""
Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template.

    Args:
        source: the Jinja text.
        variables: what it may name besides the messages: ``bos_token``, ``eos_token`` and so on.

    Raises:
        ValueError: the text is not a Jinja template.
    """

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        self.source, self.variables = source, dict(variables or {})
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise fail("chat template", "a Jinja template", f"an error: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation.

        Keys of a message that hold None are left out, as if they were not there.

        Args:
            messages: ``{"role": ..., "content": ...}`` and whatever else the template reads; plain
                JSON values throughout.
            add_generation_prompt: end with what comes before an assistant's answer.
            variables: further names for the template; they win over the model's own.

        Raises:
            ValueError: no messages, values that are not plain JSON, a template that refuses the
                conversation or fails, that takes longer than ``MAX_RENDER_S``, or a result of
                more than 16 Mi characters.
        """
        if not messages:
            raise fail("messages", "at least one message", "none")
        given = {
            "messages": [_message(m, i) for i, m in enumerate(messages)],
            "tools": _plain(tools, "tools"),
            "documents": _plain(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
            **_plain(variables, "template variables"),
        }
        parts, length = [], 0
        try:
            with end_after(MAX_RENDER_S, CODE):
                for part in self._template.generate({**self.variables, **given}):
                    parts.append(part)
                    length += len(part)
                    if length > MAX_PROMPT_CHARS:
                        limit = f"at most {MAX_PROMPT_CHARS} characters"
                        raise fail("chat template", limit, "more")
        except TookTooLong:
            got = "more: it loops for too long over this conversation"
            raise fail("chat template", f"at most {MAX_RENDER_S:g} s to render", got) from None
        except (jinja2.TemplateError, TypeError, LookupError, AttributeError) as error:
            raise _refused(error) from None
        except (ArithmeticError, RecursionError, MemoryError) as error:
            raise _refused(error) from None
        return "".join(parts)


def _refused(error: Exception) -> ValueError:
    got = f"{type(error).__name__}: {error}"[:500]
    return fail("chat template", "messages it can render", got, "check roles and their order")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox, which also refuses to make huge sequences and numbers."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and _product_size(left, right) > MAX_PROMPT_CHARS:
            raise jinja2.sandbox.SecurityError("a repeated sequence is too long")
        if operator == "**" and _power_bits(left, right) > 4096:
            raise jinja2.sandbox.SecurityError("a power is too large")
        return super().call_binop(context, operator, left, right)


def _product_size(left: Any, right: Any) -> int:
    if isinstance(left, int):
        left, right = right, left
    if isinstance(left, str | list | tuple) and isinstance(right, int):
        return len(left) * right
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    return 0


def _power_bits(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * abs(right)
    return 0


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``: marks what an assistant wrote; for rendering it is its content."""

    tags = frozenset(("generation",))  # type: ignore[assignment]

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without underscore names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"namespace names must not start with _: {name!r}")


def _environment() -> jinja2.Environment:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise, strftime_now=_now, namespace=_Namespace, dict=_make_dict
    )
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _message(message: Message, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise fail(f"messages[{index}]", "an object", type(message).__name__)
    kept = {key: value for key, value in message.items() if value is not None}
    return _plain(kept, f"messages[{index}]")


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of plain JSON types, so that a template meets no object with methods."""
    if depth > 64:
        raise fail(where, "at most 64 levels of nesting", "more")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
    raise fail(where, "plain JSON values", type(value).__name__)
