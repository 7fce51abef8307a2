"""The tiny model that comes with the package, for a start without a download."""

from pathlib import Path

from blocks._checks import fail


def bundled_model() -> Path:
    """Folder of the bundled model, in the layout ``load_model`` and transformers read.

    Raises:
        ValueError: this installation came without it.
    """
    folder = Path(__file__).parent / "bundled"
    if not (folder / "config.json").is_file():
        hint = "train one with python -m recipes.train, or pass the folder of another model"
        raise fail("bundled model", f"config.json in {folder}", "none", hint)
    return folder


def model_folder(name: str) -> Path:
    """The folder that a user names; ``bundled`` is the model that comes with the package."""
    return bundled_model() if name == "bundled" else Path(name)
