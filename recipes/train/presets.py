"""Three runs known to work, by name."""

from recipes.train.config import TrainConfig


def tiny() -> TrainConfig:
    """Seconds on a CPU; what the tests run."""
    return TrainConfig(
        max_corpus_bytes=200_000,
        vocab_size=512,
        context_len=64,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=64,
        batch_size=4,
        num_steps=60,
        learning_rate=1e-2,
        warmup_steps=5,
        dtype="float32",
        num_threads=1,
        log_every=5,
        eval_every=30,
        eval_tokens=2048,
        checkpoint_every=20,
    )


def demo() -> TrainConfig:
    """About a minute on two idle CPU cores, from the text to a model that writes Python shapes."""
    return TrainConfig(
        max_corpus_bytes=3_000_000,
        vocab_size=2048,
        context_len=256,
        hidden_size=192,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=512,
        batch_size=8,
        num_steps=400,
        learning_rate=6e-3,
        warmup_steps=20,
        dtype="auto",
        num_threads=1,  # a second one gains little at this size and loses much on a busy machine
        eval_every=100,
        eval_tokens=16_384,
        checkpoint_every=200,
    )


def bundled() -> TrainConfig:
    """The run that made the model in ``recipes/model/bundled``."""
    return TrainConfig(
        chat_share=0.55,
        batch_size=4,
        num_steps=6000,
        learning_rate=6e-3,
        min_lr_share=0.0,
        warmup_steps=100,
        compile=True,
        num_threads=1,
        log_every=20,
        eval_every=500,
        checkpoint_every=500,
    )


PRESETS = {"tiny": tiny, "demo": demo, "bundled": bundled}
