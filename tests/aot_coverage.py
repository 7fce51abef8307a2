"""Which kernels exist and which of them are compiled ahead of time: read from the sources alone."""

import ast
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.aot import ROOT, TARGETS, AotCase


def kernels(root: Path = ROOT) -> set[str]:
    """Every kernel under ``blocks/``, as ``module:name``.

    A kernel is a jit function that host code imports, or that no other jit function calls: a new
    one cannot hide behind the way it is launched.
    """
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in sorted((root / "blocks").rglob("*.py"))
    }
    jit = {m: _jit_functions(path) for m, path in files.items() if "_triton" in m.split(".")}
    launched: set[str] = set()
    called: set[str] = set()
    for module, path in files.items():
        (called if module in jit else launched).update(_uses(module, path, jit))
    return launched | ({f"{m}:{name}" for m, names in jit.items() for name in names} - called)


def uncovered(
    cases: Iterable[AotCase],
    *,
    root: Path = ROOT,
    only_on: Mapping[str, tuple[str, ...]] | None = None,
) -> list[str]:
    """Kernels and targets without a case, as ``module:name on target``.

    Args:
        only_on: kernels written for some chips alone, and those chips.
    """
    covered = {(case.kernel, target) for case in cases for target in case.targets}
    return sorted(
        f"{kernel} on {target}"
        for kernel in kernels(root)
        for target in (only_on or {}).get(kernel, TARGETS)
        if (kernel, target) not in covered
    )


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _jit_functions(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(d).split("(")[0].endswith("jit") for d in node.decorator_list)
    }


def _uses(module: str, path: Path, jit: Mapping[str, set[str]]) -> set[str]:
    """The jit functions a file imports, reaches through an imported module, or calls itself."""
    found: set[str] = set()
    modules: dict[str, str] = {}  # local name to module
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if alias.name in jit.get(node.module, ()):
                    found.add(f"{node.module}:{alias.name}")
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Attribute):
            origin, name = modules.get(ast.unparse(node.value), ""), node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            origin, name = module, node.func.id
        else:
            continue
        if name in jit.get(origin, ()):
            found.add(f"{origin}:{name}")
    return found
