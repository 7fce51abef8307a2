"""The error for code that cannot be traced, which names the line of the caller's it stands at."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

_OWN = tuple(str(Path(path).parent) for path in (torch.__file__, __file__))
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
