"""Blocks inside Hugging Face transformers models.

A name is imported when it is first asked for: transformers takes seconds to load and is an extra.
Asking for ``PagedCache`` also registers ``attn_implementation="blocks"``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.hf.paged_attention import PagedCache as PagedCache
    from recipes.hf.patch_llama import patch as patch
    from recipes.hf.patch_llama import patched as patched
    from recipes.hf.patch_llama import unpatch as unpatch

_HOMES = {
    "PagedCache": "paged_attention",
    "patch": "patch_llama",
    "patched": "patch_llama",
    "unpatch": "patch_llama",
}
__all__ = ["PagedCache", "patch", "patched", "unpatch"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "transformers":
            raise
        raise ModuleNotFoundError(
            f"{__name__}: expected the package transformers, got none; pip install -e '.[hf]'",
            name=error.name,
        ) from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
