"""The text a run learns from: documents, a held-out share, and question and answer pairs.

The default corpus is the standard library of the running Python, which is on every user's machine
and under one licence. Which files are taken, their order and the split depend on paths and
contents only, so the same library gives the same corpus and the same digest everywhere.
"""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from blocks._checks import check, fail
from recipes.train import docstrings

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
SKIPPED_FOLDERS |= {"pydoc_data", "lib2to3", "turtledemo", ".git", ".venv", "node_modules"}
SKIPPED_PREFIXES = ("config-", "_sysconfigdata")
MAX_TABLE_SHARE = 0.06  # of digits and backslashes; above it a file is a table, not a text
MAX_FILE_BYTES = 4_000_000


@dataclasses.dataclass(frozen=True)
class Document:
    """One text and the name it is known by (its path inside the corpus)."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A documented name: ``kind`` (module, class, function, ...), dotted ``name``, ``answer``."""

    kind: str
    name: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a run learns from.

    train, held_out: documents in the order of their hashed names; a document is in one of them.
    pairs: documented names in alphabetical order, one each.
    digest: sha256 over every name and text above.
    source: where it came from, in words.
    """

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    pairs: tuple[Pair, ...]
    digest: str
    source: str

    @property
    def train_bytes(self) -> int:
        return sum(len(document.text.encode()) for document in self.train)

    @property
    def held_out_bytes(self) -> int:
        return sum(len(document.text.encode()) for document in self.held_out)


def load_corpus(
    path: str | Path | None = None,
    *,
    max_bytes: int | None = None,
    held_out_share: float = 0.03,
    with_pairs: bool = False,
) -> Corpus:
    """Read the corpus at ``path``, or the standard library when that is None.

    Args:
        path: a text file (its last part is held out) or a folder (files are held out by hash).
        max_bytes: cap on the training text (a tenth of it on the held-out text); files are taken
            in the order of their hashed names.
        held_out_share: expected share of files held out.
        with_pairs: also collect docstring pairs.

    Raises:
        ValueError: no such path, or no text in it.
    """
    standard = path is None
    root = Path(sysconfig.get_path("stdlib")) if path is None else Path(path)
    check(root.exists(), "corpus", "an existing file or folder", str(root))
    if root.is_file():
        train, held_out = _split_file(root, held_out_share, max_bytes)
    else:
        train, held_out = _split_folder(root, held_out_share, max_bytes, only_python=standard)
    if not train or not held_out:
        raise fail("corpus", "at least two text files or one long one", str(root))
    pairs = _collect_pairs(train, standard) if with_pairs else ()
    if standard:
        version = sys.version.split()[0]
        source = f"standard library of Python {version}, tests and tables left out"
    else:
        source = root.name
    return Corpus(train, held_out, pairs, _digest(train, held_out, pairs), source)


def is_table(text: str) -> bool:
    """Whether a text is mostly numbers and escapes (codec and entity tables)."""
    dense = sum(text.count(sign) for sign in "0123456789\\")
    return dense > MAX_TABLE_SHARE * len(text)


def _read(path: Path) -> str | None:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not text.strip() or "\0" in text or len(data) > MAX_FILE_BYTES:
        return None
    return text.replace("\r\n", "\n")


def _split_folder(
    root: Path, share: float, max_bytes: int | None, *, only_python: bool
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Training and held-out documents, in the order of their hashed names."""
    names = {_hash(path.relative_to(root).as_posix()): path for path in _files(root, only_python)}
    train, held_out = [], []
    for key in sorted(names):
        (held_out if int(key[:8], 16) < share * 2.0**32 else train).append(names[key])
    if not held_out:
        held_out, train = train[:1], train[1:]
    return (
        _read_all(train, root, max_bytes, only_python),
        _read_all(held_out, root, _held_out_cap(max_bytes), only_python),
    )


def _files(root: Path, only_python: bool) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not (_skipped(name) or name in SKIPPED_FOLDERS)]
        for name in names:
            path = Path(folder, name)
            wanted = name.endswith(".py") or not only_python
            if wanted and not _skipped(name) and not path.is_symlink() and path.is_file():
                yield path


def _skipped(name: str) -> bool:
    return name.startswith((".", *SKIPPED_PREFIXES))


def _read_all(
    paths: list[Path], root: Path, max_bytes: int | None, drop_tables: bool
) -> tuple[Document, ...]:
    """The texts among the files, up to ``max_bytes`` in all; the last one may be cut."""
    documents, room = [], math.inf if max_bytes is None else max_bytes
    for path in paths:
        if room <= 0:
            break
        text = _read(path)
        if text is not None and not (drop_tables and is_table(text)):
            text = _cut(text, room)
            documents.append(Document(path.relative_to(root).as_posix(), text))
            room -= len(text.encode())
    return tuple(documents)


def _held_out_cap(max_bytes: int | None) -> int | None:
    return None if max_bytes is None else max(1, max_bytes // 10)


def _cut(text: str, max_bytes: float) -> str:
    data = text.encode()
    return text if len(data) <= max_bytes else data[: int(max_bytes)].decode(errors="ignore")


def _split_file(
    path: Path, share: float, max_bytes: int | None
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """The head of a text for training, its end held out."""
    text = _read(path)
    if text is None or len(text) < 1000:
        raise fail("corpus", "a text of at least 1000 characters in UTF-8", str(path))
    cut = text.rfind("\n", 0, int(len(text) * (1 - share))) + 1 or int(len(text) * (1 - share))
    limit = math.inf if max_bytes is None else max_bytes
    head, end = _cut(text[:cut], limit), _cut(text[cut:], _held_out_cap(max_bytes) or limit)
    return (Document(path.name, head),), (Document(f"{path.name} (end)", end),)


def _collect_pairs(documents: Iterable[Document], standard: bool) -> tuple[Pair, ...]:
    found = list(_introspected()) if standard else []
    if not found:
        for document in documents:
            if document.name.endswith(".py"):
                module = document.name[:-3].replace("/", ".").removesuffix(".__init__")
                found.extend(docstrings.parse_docstrings(document.text, module))
    pairs = {}
    for kind, name, docstring in found:
        answer = docstrings.first_sentences(docstring)
        if answer:
            pairs.setdefault(name, Pair(kind, name, answer))
    return tuple(pairs[name] for name in sorted(pairs))


def _introspected() -> Iterator[tuple[str, str, str]]:
    """Docstrings of the running standard library, imported in an isolated process."""
    command = [sys.executable, "-I", str(Path(docstrings.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    for line in done.stdout.splitlines():
        kind, name, docstring = json.loads(line)
        yield kind, name, docstring


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(train: Iterable[Document], held_out: Iterable[Document], pairs: Iterable[Pair]) -> str:
    digest = hashlib.sha256()
    for part in (train, held_out):
        for document in part:
            digest.update(f"{document.name}\0{_hash(document.text)}\n".encode())
        digest.update(b"\n")
    for pair in pairs:
        digest.update(f"{pair.kind}\0{pair.name}\0{pair.answer}\n".encode())
    return digest.hexdigest()
