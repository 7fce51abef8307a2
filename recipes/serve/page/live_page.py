"""``live_page``: the page that shows a service at work."""

import base64
import functools
import hashlib
from importlib import resources
from string import Template


@functools.cache
def live_page() -> str:
    """HTML that asks ``cluster`` beside itself every two seconds and draws the ``ClusterState``.

    It holds no data itself. Where ``cluster`` answers 401 it asks for the key, keeps it for the
    session of the tab, and sends it as a bearer token.
    """
    parts = {"style": _read("live.css"), "script": _read("live.js")}
    return Template(_read("live.html")).substitute(parts)


@functools.cache
def page_headers() -> dict[str, str]:
    """What to send with the page: it runs its own script alone, loads nothing, and asks nobody but
    its own server."""
    script = f"\n{_read('live.js')}\n"  # all that stands between its tags
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _read(name: str) -> str:
    return (resources.files("recipes.serve.page") / name).read_text("utf-8")
