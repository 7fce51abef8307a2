"""``execute_annotations``: functions of host modules check their annotations while tests run.

Shapes are checked by jaxtyping, which takes tens of microseconds a call. Modules that speak of none
are checked by beartype alone, at a thirtieth of that; that is most of ``pipeline``, ``sched`` and
``sharding``, whose loops are long.
"""

import ast
import dataclasses
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import beartype
import jaxtyping

SLOW = ("jaxtyping", "TYPE_CHECKING")
"""Words of modules left to jaxtyping, which also passes over names that are not imported."""
CHECK, CHECK_CLASS = "__check_annotations__", "__check_fields__"
checked = beartype.beartype(conf=beartype.BeartypeConf(violation_type=TypeError))


def execute_annotations(root: Path) -> None:
    """In every module of ``blocks`` that holds host code; jit code must not be wrapped."""
    slow, quick = [], []
    for path in sorted((root / "blocks").rglob("*.py")):
        if "_triton" not in path.parts and path.name != "__init__.py":
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            (slow if any(word in path.read_text() for word in SLOW) else quick).append(module)
    jaxtyping.install_import_hook(slow, "beartype.beartype")
    sys.meta_path.insert(0, _Finder(frozenset(quick)))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, modules: Collection[str]) -> None:
        self.modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with its functions decorated; nothing of it is cached on disk."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        _decorate(tree)
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update({CHECK: checked, CHECK_CLASS: _check_fields})
        super().exec_module(module)


def _decorate(tree: ast.AST) -> None:
    """Methods and functions of a module; not those that calls of others make anew."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.decorator_list.append(_name(CHECK, node))  # below property and the like
        elif isinstance(node, ast.ClassDef):
            node.decorator_list.insert(0, _name(CHECK_CLASS, node))  # above dataclass
            _decorate(node)


def _name(name: str, like: ast.AST) -> ast.Name:
    return ast.copy_location(ast.Name(name, ast.Load()), like)


def _check_fields(cls: Any) -> Any:
    """A dataclass whose fields are checked when one is made."""
    if "__init__" in vars(cls) and dataclasses.is_dataclass(cls):
        made: Any = cls
        made.__init__ = checked(made.__init__)
    return cls
