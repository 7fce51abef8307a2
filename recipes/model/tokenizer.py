"""A model's tokenizer: text to ids and back, chats to ids, streams of ids to text."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from blocks._checks import fail
from recipes.model.chat import ChatTemplate, Message
from recipes.model.detokenizer import Detokenizer
from recipes.model.folder import find, open_folder, read_json, read_text, require, write_json
from recipes.model.token_bytes import bytes_of_token

FILE, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
MAX_TOKENIZER_BYTES = 256 << 20
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
OPEN, CLOSE = "\ufdd0", "\ufdd1"  # noncharacters: around control tokens spelled by a user
SHORT = 4096
"""Characters or ids up to which a text is converted in one go; other threads run while a longer one
is, as a million characters take seconds."""
MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")


class Tokenizer:
    """``tokenizer.json`` with the settings and the chat template that stand beside it.

    Args:
        backend: the tokenizer proper.
        settings: ``tokenizer_config.json``; names the special tokens.
        template: Jinja text of the chat template, or None for a model without chats.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        settings: Mapping[str, Any] | None = None,
        template: str | None = None,
    ) -> None:
        self.backend = backend
        self.settings = dict(settings or {})
        self.special_tokens = _special_tokens(self.settings)
        self.chat = None if template is None else ChatTemplate(template, self.special_tokens)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and the chat template of a folder.

        Raises:
            ValueError: no ``tokenizer.json``, or a file that cannot be understood.
        """
        folder = open_folder(folder)
        hint = "save it with a fast tokenizer; vocab files and .model files alone are not read"
        text = read_text(require(folder, FILE, hint), MAX_TOKENIZER_BYTES)
        path = find(folder, SETTINGS)
        settings = read_json(path) if path else {}
        return cls(_parse(text), settings, _find_template(folder, settings))

    def save(self, folder: str | Path) -> None:
        """Write the files ``from_folder`` reads; transformers reads them too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self.backend.to_str(pretty=True))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | self.settings
        settings.pop("chat_template", None)
        write_json(folder / SETTINGS, settings)
        if self.chat is not None:
            (folder / TEMPLATE).write_text(self.chat.source)

    @functools.cached_property
    def num_ids(self) -> int:
        """One more than the largest id; the model's vocabulary must not be smaller."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of("eos_token")

    def encode(
        self, text: str, *, add_special_tokens: bool = True, control_tokens: bool = True
    ) -> list[int]:
        """Ids of a text.

        Args:
            add_special_tokens: what the tokenizer puts around a text, such as a leading BOS.
            control_tokens: whether text that spells a control token becomes it; False keeps it
                plain text, which is right for text a user typed.

        Raises:
            ValueError: text that is no valid Unicode (a lone surrogate).
        """
        backend = self.backend if control_tokens else self._plain_backend
        _check_unicode(text)
        return _ids(backend, text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_control_tokens: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: an id below 0 or beyond 32 bits. An id outside the vocabulary adds nothing.
        """
        try:
            if len(ids) <= SHORT:
                return self.backend.decode(list(ids), skip_special_tokens=skip_control_tokens)
            (text,) = self.backend.decode_batch(
                [list(ids)], skip_special_tokens=skip_control_tokens
            )
            return text
        except (OverflowError, TypeError):
            raise fail("ids", "token ids", repr(ids)[:80]) from None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds to a text; half a character stays half a character."""
        return bytes_of_token(self.backend, token_id)

    def detokenizer(self, *, skip_control_tokens: bool = True) -> Detokenizer:
        """A fresh decoder of one stream of ids."""
        return Detokenizer(self, skip_control_tokens=skip_control_tokens)

    def render_chat(self, messages: Sequence[Message], **options: Any) -> str:
        """The prompt text of a conversation; see ``ChatTemplate.render`` for the options.

        Raises:
            ValueError: the model has no chat template, or it refuses the conversation.
        """
        return self._template().render(messages, **options)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        control_tokens: bool = False,
        **options: Any,
    ) -> list[int]:
        """Ids of a conversation.

        Args:
            tools: JSON schemas for the template.
            control_tokens: whether control tokens spelled inside messages and tools become those
                tokens. By default only the template's own do, so that no message can end its turn
                or open another's.
            options: see ``ChatTemplate.render``.

        Raises:
            ValueError: the model has no chat template, or it refuses the conversation.
        """
        template = self._template()
        if not control_tokens:
            messages, tools = self._mark(list(messages)), self._mark(tools)
        text = template.render(messages, tools=tools, **options)
        _check_unicode(text)
        if OPEN not in text and CLOSE not in text:
            return self._encode_text(text)
        return self._encode_marked(text)

    def _template(self) -> ChatTemplate:
        if self.chat is None:
            hint = f"add {TEMPLATE} to the folder, or send the prompt as plain text"
            raise fail("chat template", "one in the model folder", "none", hint)
        return self.chat

    @functools.cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        """The same tokenizer, to which special tokens are text like any other."""
        plain = tokenizers.Tokenizer.from_str(self.backend.to_str())
        plain.encode_special_tokens = True
        return plain

    @functools.cached_property
    def _control(self) -> re.Pattern[str]:
        """Any control token: the special ones, and other added ones the template writes."""
        source = self.chat.source if self.chat else ""
        added = self.backend.get_added_tokens_decoder().values()
        control = [t.content for t in added if t.special or t.content in source]
        longest_first = sorted(filter(None, control), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _mark(self, value: Any) -> Any:
        """Put OPEN and CLOSE around every control token in the strings of a JSON value."""
        if isinstance(value, str):
            bare = value.replace(OPEN, "").replace(CLOSE, "")
            return self._control.sub(lambda found: OPEN + found[0] + CLOSE, bare)
        if isinstance(value, Mapping):
            return {key: self._mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(item) for item in value]
        return value

    def _encode_marked(self, text: str) -> list[int]:
        """Encode a rendered chat in pieces: what stands between OPEN and CLOSE as plain text.

        Marks a template tore apart are dropped; they still part the text, so that no control
        token can form across them.
        """
        ids: list[int] = []
        for i, piece in enumerate(MARKED.split(text)):
            if piece:
                ids += self._encode_inner(piece, plain=i % 2 == 1, first=not ids)
        return ids

    def _encode_inner(self, piece: str, *, plain: bool, first: bool) -> list[int]:
        """Encode from the middle of a text: after a line end, whose ids are taken off again.

        Tokenizers in the manner of SentencePiece would put a space before the piece otherwise.
        """
        encode = self._encode_without_added_tokens if plain else self._encode_text
        if first:
            return encode(piece)
        line_end = encode("\n")
        ids = encode("\n" + piece)
        return ids[len(line_end) :] if ids[: len(line_end)] == line_end else encode(piece)

    def _encode_text(self, text: str) -> list[int]:
        return _ids(self.backend, text, add_special_tokens=False)

    def _encode_without_added_tokens(self, text: str) -> list[int]:
        backend = self.backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splits = [text]
        if backend.pre_tokenizer is not None:
            splits = [split for split, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for split in splits for token in backend.model.tokenize(split)]

    def _id_of(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.backend.token_to_id(token)


def _ids(backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    if len(text) <= SHORT:
        return backend.encode(text, add_special_tokens=add_special_tokens).ids
    (found,) = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return found.ids


def _parse(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        raise fail(FILE, "a tokenizer", f"an error: {str(error)[:200]}") from None


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and its kin; each a string or an object with ``content``."""
    found: dict[str, str] = {}
    for role in (f"{name}_token" for name in ROLES):
        value = settings.get(role)
        content = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(content, str):
            found[role] = content
        elif content is not None:
            raise fail(f"{SETTINGS} {role}", "a string", repr(value)[:80])
    return found


def _find_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The template of its own file, else that of the settings; of several, the default one."""
    if path := find(folder, TEMPLATE):
        return read_text(path)
    value = settings.get("chat_template")
    if isinstance(value, list):
        named = {e.get("name"): e.get("template") for e in value if isinstance(e, Mapping)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise fail(f"{SETTINGS} chat_template", "a Jinja text", repr(value)[:80])
    return value


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"a lone surrogate at character {error.start}"
        raise fail("text", "valid Unicode", got) from None
