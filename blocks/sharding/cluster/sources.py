"""Where every number of a cluster file comes from. Needs no torch."""

from collections.abc import Iterable, Mapping

from blocks._checks import check


def check_sources(what: str, sources: Mapping[str, str], fields: Iterable[str]) -> None:
    """Check that ``sources`` says of every field, and of nothing else, where it comes from.

    >>> check_sources("link", {"latency_s": "data sheet"}, ["latency_s", "bytes_per_s"])
    Traceback (most recent call last):
    ...
    ValueError: sources of link: expected a text for each of ['bytes_per_s', 'latency_s'], got ...
    """
    wanted = sorted(fields)
    texts = all(isinstance(text, str) and text.strip() for text in sources.values())
    ok = texts and sorted(sources) == wanted
    hint = "a data sheet, a publication, a measurement with its date, or 'assumption'"
    check(ok, f"sources of {what}", f"a text for each of {wanted}", dict(sources), hint)
