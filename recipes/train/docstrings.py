"""Question and answer pairs out of docstrings.

Two ways to read them: ``parse_docstrings`` walks the syntax tree of a source text, and this file
run as a script imports the standard library in a process of its own and asks every public object
(so functions written in C and re-exported names are there too). Only the standard library is
imported here, so the script runs in an isolated interpreter.
"""

import ast
import contextlib
import importlib
import inspect
import io
import itertools
import json
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

MAX_ANSWER_CHARS = 220
# Importing these opens windows or browsers, prints, or reaches into a running program.
NOT_IMPORTED = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "lib2to3"}
NOT_IMPORTED |= {"test", "pydoc_data", "ensurepip", "distutils"}
NOT_IMPORTED |= {"posix", "ntpath", "nturl2path", "genericpath", "sre_compile", "sre_parse"}
_SIGNATURE = re.compile(r"^[\w.]+\([^\n]*?\)\s*(?:-+>?\s*(?P<rest>[^\n]*)|[:=].*)?$")


def first_sentences(docstring: str) -> str:
    """The first paragraph in one line, cut after the sentence that fits; "" where there is none.

    >>> first_sentences('''Return the sine.
    ...
    ... More words.''')
    'Return the sine.'
    """
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    for keep_rest in (False, True):  # what `name(x) -> rest` says is the second choice
        for paragraph in paragraphs:
            text = _prose(paragraph, keep_rest)
            if len(text) >= 8 and not text.startswith((">>>", "(")) and re.search(r"\w", text):
                return _cut(text)
    return ""


def _prose(paragraph: str, keep_rest: bool) -> str:
    """A paragraph in one line, without the signature lines at its head and after its end."""
    lines = [line.strip() for line in paragraph.strip().splitlines()]
    while lines and (signature := _SIGNATURE.match(lines[0])):
        rest = signature["rest"] or ""
        lines = [rest, *lines[1:]] if keep_rest and len(rest.split()) > 2 else lines[1:]
    prose = itertools.takewhile(lambda line: not _SIGNATURE.match(line), lines)
    return re.sub(r"\s+", " ", " ".join(prose)).strip()


def _cut(text: str) -> str:
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z`'\"(])", text)
    kept = ""
    for sentence in sentences[:2]:
        if kept and len(kept) + len(sentence) > 140:
            break
        kept = f"{kept} {sentence}".strip()
    if len(kept) <= MAX_ANSWER_CHARS:
        return kept
    return kept[:MAX_ANSWER_CHARS].rsplit(" ", 1)[0].rstrip(",;:") + " ..."


def parse_docstrings(source: str, module: str) -> Iterator[tuple[str, str, str]]:
    """(kind, dotted name, docstring) of the public names of a source text, in its order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    yield from _walk(tree, module)


def _walk(node: Any, name: str) -> Iterator[tuple[str, str, str]]:
    kinds = {ast.Module: "module", ast.ClassDef: "class"}
    docstring = ast.get_docstring(node)
    if docstring:
        yield kinds.get(type(node), "function"), name, docstring
    for child in getattr(node, "body", []):
        inside = isinstance(node, ast.Module | ast.ClassDef)
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if inside and named and not child.name.startswith("_"):
            yield from _walk(child, f"{name}.{child.name}")


def _modules() -> Iterator[ModuleType]:
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in NOT_IMPORTED:
            continue
        module = _import(name)
        if module is None:
            continue
        yield module
        if not hasattr(module, "__path__"):
            continue
        inside = pkgutil.walk_packages(module.__path__, name + ".")
        for found in sorted(inside, key=lambda m: m.name):
            parts = found.name.split(".")
            if any(p.startswith("_") or p in ("test", "tests", "encodings") for p in parts):
                continue
            inner = _import(found.name)
            if inner is not None:
                yield inner


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except BaseException:  # an optional library is missing, or the module exits
        return None


def introspect() -> Iterator[tuple[str, str, str]]:
    """(kind, dotted name, docstring) of every public name of the running standard library."""
    seen: set[tuple[str, int]] = set()
    for module in _modules():
        builtin = module.__name__ == "builtins"
        home_name = "os.path" if module is os.path else module.__name__
        prefix = "" if builtin else home_name + "."
        if module.__doc__ and not builtin:
            yield "module", home_name, module.__doc__
        listed = getattr(module, "__all__", None)
        for name in sorted(set(listed if listed is not None else vars(module))):
            value = getattr(module, name, None)
            home = getattr(value, "__module__", None)
            foreign = listed is None and not builtin and home not in (module.__name__, None)
            again = (module.__name__.split(".")[0], id(value))  # asyncio.events.X is asyncio.X
            if name.startswith("_") or value is None or foreign or again in seen:
                continue
            seen.add(again)
            yield from _describe(prefix + name, value)


def _describe(name: str, value: Any) -> Iterator[tuple[str, str, str]]:
    if inspect.isclass(value):
        docstring = value.__doc__ if value is type else vars(value).get("__doc__")
        if isinstance(docstring, str):
            yield "class", name, docstring
        for key in sorted(vars(value)):
            member = inspect.getattr_static(value, key)
            docstring = getattr(member, "__doc__", None)
            known = inspect.isroutine(member) or isinstance(member, property)
            if not key.startswith("_") and known and isinstance(docstring, str):
                kind = "property" if isinstance(member, property) else "method"
                yield kind, f"{name}.{key}", inspect.cleandoc(docstring)
    elif inspect.isroutine(value) and isinstance(value.__doc__, str):
        yield "function", name, value.__doc__


def main() -> None:
    """Print one JSON list per documented name."""
    warnings.simplefilter("ignore")
    out = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):
        found = list(introspect())
    for kind, name, docstring in found:
        out.write(json.dumps([kind, name, docstring]) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
