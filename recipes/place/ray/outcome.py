"""How a process of Ray has ended, as far as Ray knows."""

import re
from typing import Any

from recipes.place.ray.library import ray_library
from recipes.serve.parallel.start import UNKNOWN

_DETAIL = re.compile(r"Worker exit detail: (.*?)(?: Some common causes|$)", re.DOTALL)


def exit_code_of(run: Any) -> tuple[int, str]:
    """Of a call of an actor that has ended: what it returned, and a word on it.

    A call that did not return has the code ``UNKNOWN``: Ray sees that a process or its node is
    gone, and not by which signal or with which status.
    """
    ray = ray_library()
    try:
        code = ray.get(run)
    except ray.exceptions.RayActorError as error:
        return UNKNOWN, told_in(str(error))
    except ray.exceptions.RayError as error:  # raised by what it called, or unreadable
        return 1, str(error).strip().splitlines()[-1]
    return code, f"ended with exit status {code}"


def told_in(text: str) -> str:
    """The sentence that matters of Ray's report of a dead actor.

    >>> told_in("It died.\\n\\tpid: 7\\nThe actor is dead because it was killed by `ray.kill`.")
    'The actor is dead because it was killed by `ray.kill`.'
    """
    found = _DETAIL.search(text)
    return found[1].strip() if found else text.strip().splitlines()[-1].strip()
