"""Place many models on one cluster.

python -m recipes.place plan cluster.toml --out placement.json             # what to host where
python -m recipes.place simulate cluster.toml --placement placement.json   # how traffic fares
python -m recipes.place serve cluster.toml --placement placement.json      # answer OpenAI's clients
python -m recipes.place profile FOLDER --out model.profile                 # time a model here

The file names models, devices and traffic (recipes/place/config.py, examples in
recipes/place/examples); key=value lays a field over it. Every verb has a --help of its own.
"""

import importlib
import sys

VERBS: dict[str, str] = {
    "plan": "recipes.place.plan_verb",
    "profile": "recipes.place.measure.profile_verb",
    "simulate": "recipes.place.simulate_verb",
    "serve": "recipes.place.serve_verb",
}
"""Modules with a ``main(argv) -> int``."""


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == [] or given[0] not in VERBS:
        asked = given[0] if given else "none"
        told = asked in ("-h", "--help")
        print(__doc__, file=sys.stdout if told else sys.stderr)
        if not told:
            print(f"error: verb: expected one of {sorted(VERBS)}, got {asked}", file=sys.stderr)
        return 0 if told else 2
    try:
        return importlib.import_module(VERBS[given[0]]).main(given[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
