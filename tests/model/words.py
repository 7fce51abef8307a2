"""Small tokenizers trained on the spot, in the three manners real models use."""

import functools

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CONTROL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "hello world, hello there 😀 é ü",
    "a\n\nb c",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SETTINGS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@functools.cache
def byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _trained(made, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


@functools.cache
def byte_fallback() -> tokenizers.Tokenizer:
    """BPE with spaces as marks and unknown characters as bytes, as Llama 2 and Gemma have it."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    every_byte = [f"<0x{i:02X}>" for i in range(256)]
    trained = _trained(made, more=["<unk>", *every_byte])
    trained.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return _demoted(trained, every_byte)


def _trained(made: tokenizers.Tokenizer, more: list[str] = [], **options) -> tokenizers.Tokenizer:  # noqa: B006
    trainer = trainers.BpeTrainer(
        vocab_size=420 + len(more),
        special_tokens=[*CONTROL, *more],
        show_progress=False,
        **options,
    )
    made.train_from_iterator(TEXTS * 4, trainer)
    return made


def _demoted(made: tokenizers.Tokenizer, names: list[str]) -> tokenizers.Tokenizer:
    """Bytes are pieces of the vocabulary, not added tokens."""
    import json

    whole = json.loads(made.to_str())
    whole["added_tokens"] = [t for t in whole["added_tokens"] if t["content"] not in names]
    return tokenizers.Tokenizer.from_str(json.dumps(whole))
