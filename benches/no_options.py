"""``no_options``: a command line that takes nothing, and says so."""

import argparse
import sys


def no_options(description: str | None) -> None:
    """Answer ``--help``; refuse anything else, with exit status 2."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else sys.argv[0]
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(
        f"python -m {name}", description=description, formatter_class=form
    ).parse_args()
