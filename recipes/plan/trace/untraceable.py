"""The error for code that cannot be traced, which names the line of the caller's it stands at."""

import contextlib
import linecache
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

_OWN = tuple(str(Path(path).parent) for path in (torch.__file__, __file__))
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_VALUES = ("data-dependent", "DataDependent", "unbacked", "_local_scalar_dense", "u0")


class Untraceable(ValueError):
    """A module does what depends on values that are not known while planning.

    file, line: of the innermost line outside of torch; empty and 0 where none was found.
    """

    def __init__(self, message: str, file: str = "", line: int = 0) -> None:
        super().__init__(message)
        self.file = file
        self.line = line


@contextlib.contextmanager
def naming_the_line() -> Iterator[None]:
    """Turn what fails inside into ``Untraceable``, or into the same kind of error, with the line.

    Raises:
        Untraceable: Python branched or looped on the values of tensors, or made shapes of them.
    """
    try:
        yield
    except Untraceable:
        raise
    except Exception as error:
        where = _innermost(error)
        if where is None:
            raise
        place = f'{where.filename}:{where.lineno}, in {where.name}: "{where.line}"'
        if any(word in f"{type(error).__name__} {error}" for word in _VALUES):
            message = (
                f"{place}: expected operations whose shapes and branches do not depend on the "
                f"values of tensors, got {type(error).__name__} ({_first_line(error)}); compute "
                "with masks instead (torch.where, a fixed capacity), or take this part out of "
                "the traced module"
            )
            raise Untraceable(message, where.filename, where.lineno or 0) from error
        error.add_note(f"while tracing {place}")
        raise


def check_fixed(graph: fx.Graph) -> None:
    """
    Raises:
        Untraceable: a call makes numbers of values, or tensors of a size that values decide.
    """
    for node in graph.nodes:
        made = [one for one in pytree.tree_leaves(node.meta.get("val")) if _depends(one)]
        if not made:
            continue
        frames = _FRAME.findall(node.meta.get("stack_trace") or "")
        own = [(file, int(line)) for file, line in frames if _is_callers(file)]
        file, line = own[-1] if own else ("", 0)
        text = linecache.getline(file, line).strip()
        raise Untraceable(
            f'{file}:{line}: "{text}": expected operations whose shapes and branches do not depend '
            f"on the values of tensors, got {node.target}, which makes {made[0]}; compute with "
            "masks instead (torch.where, a fixed capacity), or take this part out of the traced "
            "module",
            file,
            line,
        )


def _depends(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return any(not isinstance(size, int) for size in value.shape)
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def _innermost(error: BaseException) -> traceback.FrameSummary | None:
    """The last frame outside of torch and of this package, of the error or of what led to it."""
    seen: BaseException | None = error
    while seen is not None:
        found = [frame for frame in _frames(seen.__traceback__) if _is_callers(frame.filename)]
        if found:
            return found[-1]
        seen = seen.__cause__ or seen.__context__
    return None


def _frames(at: TracebackType | None) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(at))


def _is_callers(file: str) -> bool:
    return not file.startswith(_OWN) and not file.startswith("<") and "contextlib" not in file


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
