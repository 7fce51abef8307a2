"""Request bodies in OpenAI's shapes: strict types, unknown fields accepted, refused fields named.

Numbers are bounded by ``SamplingParams``; here only types are checked. What the server cannot do
and what would change the meaning of an answer is an error; harmless extras are let through.
"""

import re
from typing import Any, TypeVar

import msgspec

from blocks._checks import fail
from recipes.serve.errors import ApiError, bad_request, unsupported
from recipes.serve.sampling_params import SamplingParams

MAX_MESSAGES = 4096
MAX_PROMPTS = 256
MAX_PRIORITY = 1_000_000
MAX_SALT_CHARS = 256

UNSUPPORTED = (
    *("tools", "functions", "function_call", "response_format", "audio", "prediction"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),
    *("allowed_token_ids", "bad_words", "use_beam_search", "prompt_embeds", "suffix"),
    *("truncate_prompt_tokens", "continue_final_message", "chat_template", "documents"),
    *("logits_processors", "typical_p", "lora_request"),
)
"""Fields that would change the answer and that this server cannot honour."""

HARMLESS: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "function_call": ("none",),
}
"""Values of unsupported fields that ask for what happens anyway."""


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class _Body(msgspec.Struct, kw_only=True):
    """Fields that chat and text completions share."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None

    def sampling(self, **more: Any) -> SamplingParams:
        """The sampling parameters asked for; what is left out keeps its default."""
        given = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        try:
            bias = _logit_bias(self.logit_bias or {})
            return SamplingParams(stop=tuple(stop), logit_bias=bias, **given | more)
        except ValueError as error:
            message = str(error)
            raise bad_request(message, message.split(":")[0].split()[0]) from None

    def namespace(self) -> str:
        """The cache namespace: requests with different salts never share cached blocks."""
        salt = self.cache_salt or ""
        if len(salt) > MAX_SALT_CHARS:
            expected = f"cache_salt: expected at most {MAX_SALT_CHARS} characters"
            raise bad_request(f"{expected}, got {len(salt)}", "cache_salt")
        return salt

    def rank(self) -> int:
        """Priority: smaller runs earlier."""
        if abs(self.priority or 0) > MAX_PRIORITY:
            expected = f"priority: expected -{MAX_PRIORITY} to {MAX_PRIORITY}"
            raise bad_request(f"{expected}, got more", "priority")
        return self.priority or 0

    def wants_usage(self) -> bool:
        if self.stream_options is not None and not self.stream:
            message = "stream_options: expected stream to be true beside it"
            raise bad_request(message, "stream_options")
        return bool(self.stream_options and self.stream_options.include_usage)


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None

    def plain(self, at: str) -> dict[str, str]:
        """The message as templates take it: role and text.

        Args:
            at: where it stands, for messages (``messages[3]``).
        """
        roles = ("system", "developer", "user", "assistant", "tool")
        if self.role not in roles:
            got = self.role[:40]
            expected = f"{at}.role: expected one of {list(roles)}"
            raise bad_request(f"{expected}, got {got!r}", f"{at}.role")
        if self.tool_calls or self.function_call:
            raise unsupported(f"{at}.tool_calls", "tool calls are not part of this server")
        return {"role": self.role, "content": self._text(at)}

    def _text(self, at: str) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        for index, part in enumerate(self.content):
            if part.type != "text" or part.text is None:
                where = f"{at}.content[{index}]"
                raise unsupported(where, f"only text parts are, got type {part.type[:40]!r}")
        return "".join(part.text or "" for part in self.content)


class ChatBody(_Body, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tool_choice: Any = None
    modalities: list[str] | None = None
    chat_template_kwargs: dict[str, bool | int | float | str | None] | None = None
    add_generation_prompt: bool | None = None

    def plain_messages(self) -> list[dict[str, str]]:
        count = len(self.messages)
        if not 1 <= count <= MAX_MESSAGES:
            expected = f"messages: expected 1 to {MAX_MESSAGES} messages"
            raise bad_request(f"{expected}, got {count}", "messages")
        return [m.plain(f"messages[{index}]") for index, m in enumerate(self.messages)]

    def params(self) -> SamplingParams:
        if self.tool_choice not in (None, "none", "auto"):
            raise unsupported("tool_choice", "tools are not part of this server")
        if self.modalities not in (None, ["text"]):
            raise unsupported("modalities", "only ['text'] is")
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs: expected logprobs to be true beside it"
            raise bad_request(message, "top_logprobs")
        more: dict[str, Any] = {}
        if self.logprobs:
            more["logprobs"] = self.top_logprobs or 0
        if self.max_completion_tokens is not None:
            more["max_tokens"] = self.max_completion_tokens
        return self.sampling(**more)


class CompletionBody(_Body, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list of texts or a list of token id lists."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(item) for item in self.prompt}
        if len(kinds) != 1:
            expected = "a string, a list of strings, a list of token ids or a list of such lists"
            got = "an empty list" if not kinds else "a mixed list"
            raise bad_request(f"prompt: expected {expected}, got {got}", "prompt")
        if kinds == {int}:
            return [self.prompt]  # pyright: ignore[reportReturnType]
        if len(self.prompt) > MAX_PROMPTS:
            expected = f"prompt: expected at most {MAX_PROMPTS} prompts"
            raise bad_request(f"{expected}, got {len(self.prompt)}", "prompt")
        return self.prompt  # pyright: ignore[reportReturnType]

    @property
    def scores_only(self) -> bool:
        """``echo`` with ``max_tokens: 0``: the prompt's scores and nothing generated."""
        return self.max_tokens == 0 and bool(self.echo)

    def params(self) -> SamplingParams:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of", "leave it out or set it to n")
        more: dict[str, Any] = {"max_tokens": 16 if self.max_tokens is None else self.max_tokens}
        if self.scores_only:
            more["max_tokens"] = 1
        if self.logprobs is not None and self.echo:
            more["prompt_logprobs"] = self.logprobs
        return self.sampling(logprobs=self.logprobs, **more)


class TokenizeBody(msgspec.Struct, kw_only=True):
    """POST /tokenize: a text or chat messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


Body = TypeVar("Body", bound=msgspec.Struct)


def decode(raw: bytes, kind: type[Body]) -> Body:
    """Parse a JSON body.

    Raises:
        ApiError: 400 that names the field at fault.
    """
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        _refuse(fields)
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except (msgspec.DecodeError, ValueError) as error:
        message = f"body: expected JSON, got {str(error)[:200]}"
        raise ApiError(400, message, code="invalid_json") from None
    except RecursionError:
        message = "body: expected JSON nested at most some hundred levels, got deeper"
        raise ApiError(400, message, code="invalid_json") from None


def _refuse(fields: dict[str, msgspec.Raw]) -> None:
    for name in UNSUPPORTED:
        raw = fields.get(name)
        if raw is None:
            continue
        value = msgspec.json.decode(raw)
        empty = value is None or value is False or value in ([], {}, "")
        if not empty and value not in HARMLESS.get(name, ()):
            raise unsupported(name)


def _wrong_type(message: str) -> ApiError:
    """msgspec's message with the field's path in front."""
    text, _, path = message.partition(" - at ")
    missing = re.search(r"field `([^`]*)`", text)
    parts = [path.strip("`").removeprefix("$").removeprefix(".")]
    if missing is not None:
        parts.append(missing[1])
    param = ".".join(filter(None, parts)) or None
    text = text.replace("`", "")[:300]
    return bad_request(f"{param or 'body'}: {text}", param, "invalid_type")


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    for token in bias:
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise fail("logit_bias", "token ids as keys", repr(token[:40]))
    return {int(token): value for token, value in bias.items()}


_SAMPLING = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed", "ignore_eos"),
    *("min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("stop_token_ids", "skip_special_tokens"),
)
