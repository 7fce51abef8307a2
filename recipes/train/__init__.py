"""A trainer for small language models: text in, a model folder that serves at once out."""

try:
    from recipes.train.config import TrainConfig
    from recipes.train.corpus import Corpus, Document, Pair, load_corpus
    from recipes.train.evaluate import HeldOut, bits_per_byte
    from recipes.train.launch import ProcessLost
    from recipes.train.log import LogEntry, duration, plot_log, read_log
    from recipes.train.presets import PRESETS, bundled, demo, tiny
    from recipes.train.run import TrainResult, train
    from recipes.train.settings import override
    from recipes.train.trainer import TrainingDiverged
except ModuleNotFoundError as error:
    error.add_note("recipes.train needs an extra of this package: pip install -e '.[serve]'")
    raise

__all__ = [
    "PRESETS",
    "Corpus",
    "Document",
    "HeldOut",
    "LogEntry",
    "Pair",
    "ProcessLost",
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "bits_per_byte",
    "bundled",
    "demo",
    "duration",
    "load_corpus",
    "override",
    "plot_log",
    "read_log",
    "tiny",
    "train",
]
