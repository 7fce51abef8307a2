"""The profiles that come with the package."""

import functools
from pathlib import Path

from blocks._checks import check
from blocks.sched.profile.profile import Profile
from blocks.sched.profile.profile_file import load_profile

FOLDER = Path(__file__).parent / "files"


def bundled_profiles() -> tuple[str, ...]:
    """Their names.

    >>> bundled_profiles()
    ('bert-1.3b', 'bert-125m', 'bert-15b', 'bert-2.6b', 'bert-6.7b', 'moe-1.3b')
    """
    return tuple(sorted(path.stem for path in FOLDER.glob("*.profile")))


@functools.cache
def bundled_profile(name: str) -> Profile:
    """One of them.

    >>> profile = bundled_profile("bert-1.3b")
    >>> len(profile.timings), profile.latency_s()
    (15, 0.09894)

    Raises:
        ValueError: a name that is none of ``bundled_profiles()``.
    """
    hint = "or load a file of your own: load_profile(path)"
    check(name in bundled_profiles(), "profile", f"one of {bundled_profiles()}", repr(name), hint)
    return load_profile(FOLDER / f"{name}.profile")
