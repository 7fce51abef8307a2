"""The text a run learns from: documents, a held-out share, and question and answer pairs.

The default corpus is the standard library of the running Python, which is on every user's machine
and under one licence. Which files are taken, their order and the split depend on paths and
contents only, so the same library gives the same corpus and the same digest everywhere.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
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
        max_bytes: cap on the training text; files are taken in the order of their hashed names.
        held_out_share: expected share of files held out.
        with_pairs: also collect docstring pairs.

    Raises:
        ValueError: no such path, or no text in it.
    """
    standard = path is None
    root = Path(sysconfig.get_path("stdlib")) if path is None else Path(path)
    check(root.exists(), "corpus", "an existing file or folder", str(root))
    if root.is_file():
        train, held_out = _split_file(root, held_out_share)
    else:
        train, held_out = _split_folder(root, held_out_share, only_python=standard)
    pairs = _collect_pairs(train, standard) if with_pairs else ()
    train, held_out = _cap(train, max_bytes), _cap(held_out, max_bytes)
    if not train or not held_out:
        raise fail("corpus", "at least two text files or one long one", str(root))
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
    if not text.strip() or "\0" in text or len(data) > MAX_FILE_BYTES or is_table(text):
        return None
    return text.replace("\r\n", "\n")


def _split_folder(root: Path, share: float, *, only_python: bool):
    documents = []
    for path in root.rglob("*.py" if only_python else "*"):
        inside = path.relative_to(root)
        folders = set(inside.parts[:-1])
        hidden = any(part.startswith(".") for part in inside.parts)
        skipped = folders & SKIPPED_FOLDERS or any(
            part.startswith(SKIPPED_PREFIXES) for part in inside.parts
        )
        if hidden or skipped or path.is_symlink() or not path.is_file():
            continue
        text = _read(path)
        if text is not None:
            documents.append(Document(inside.as_posix(), text))
    documents.sort(key=lambda document: _hash(document.name))
    limit = share * 2.0**32
    held_out = [d for d in documents if int(_hash(d.name)[:8], 16) < limit] or documents[:1]
    return tuple(documents[len(held_out) :]), tuple(held_out)


def _split_file(path: Path, share: float):
    text = _read(path)
    if text is None or len(text) < 1000:
        raise fail("corpus", "a text of at least 1000 characters in UTF-8", str(path))
    cut = text.rfind("\n", 0, int(len(text) * (1 - share))) + 1 or int(len(text) * (1 - share))
    return (Document(path.name, text[:cut]),), (Document(path.name + " (end)", text[cut:]),)


def _cap(documents: tuple[Document, ...], max_bytes: int | None) -> tuple[Document, ...]:
    if max_bytes is None:
        return documents
    kept, total = [], 0
    for document in documents:
        room = max_bytes - total
        if room <= 0:
            break
        kept.append(Document(document.name, document.text[:room]))
        total += len(kept[-1].text.encode())
    return tuple(kept)


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


def _introspected():
    """Docstrings of the running standard library, imported in an isolated process."""
    command = [sys.executable, "-I", str(Path(docstrings.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    for line in done.stdout.splitlines():
        yield json.loads(line)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(train, held_out, pairs) -> str:
    digest = hashlib.sha256()
    for part in (train, held_out):
        for document in part:
            digest.update(f"{document.name}\0{_hash(document.text)}\n".encode())
        digest.update(b"\n")
    for pair in pairs:
        digest.update(f"{pair.kind}\0{pair.name}\0{pair.answer}\n".encode())
    return digest.hexdigest()
