"""Look at a trained model and write what was seen as its model card.

python -m recipes.train.card out/train-bundled

reads the run's log and its exported model, measures the model file afresh (held-out loss, recall),
prints completions, and writes ``model/README.md`` and ``model/card.json``.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from blocks._checks import check
from blocks.ops import linear_cross_entropy
from recipes.model import Decoder, load_model
from recipes.train import chat, docstrings
from recipes.train.attend import blocked_attend
from recipes.train.checkpoint import list_checkpoints, load_checkpoint
from recipes.train.config import TrainConfig
from recipes.train.corpus import Corpus, load_corpus
from recipes.train.data import encode_stream
from recipes.train.evaluate import HeldOut, evaluate
from recipes.train.log import duration, read_log
from recipes.train.recall import Recall, answer, complete, measure_recall
from recipes.train.tokenizer import token_bytes

PROMPTS = (
    "def fibonacci(n):\n",
    "import os\nimport sys\n\n",
    "import os\nimport sys\n\n\ndef main():\n",
    "class Stack:\n    def __init__(self",
)
QUESTIONS = (
    "What does json.dumps do?",
    "What does os.path.join do?",
    "What does random.shuffle do?",
    "What is itertools.chain?",
    "What does str.upper do?",
    "Hello",
)
NUM_ASKED = 300


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a model file does: held-out text, names of all kinds, names much asked for."""

    held_out: HeldOut
    recall: Recall
    common_recall: Recall


def measure_held_out(decoder: Decoder, tokenizer: Tokenizer, corpus: Corpus) -> HeldOut:
    """Loss and bits per byte over all held-out text, in the dtype the model is kept in."""
    length = decoder.config.max_positions

    def loss_sum(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(inputs.shape[1]).repeat(inputs.shape[0])
        attend = blocked_attend(decoder.config, inputs.shape[1])
        hidden = decoder(inputs.flatten(), positions, attend)
        weight = decoder.embed.weight
        return linear_cross_entropy(hidden, weight, labels.flatten(), reduction="sum")

    stream = encode_stream(corpus.held_out, tokenizer)
    return evaluate(loss_sum, stream, token_bytes(tokenizer), context_len=length, batch_size=8)


def measure(decoder: Decoder, tokenizer: Tokenizer, corpus: Corpus) -> Measured:
    """Everything a card says about quality."""
    common = [pair for pair in corpus.pairs if chat.is_common(pair)]
    return Measured(
        measure_held_out(decoder, tokenizer, corpus),
        measure_recall(decoder, tokenizer, corpus.pairs, num_asked=NUM_ASKED),
        measure_recall(decoder, tokenizer, common, num_asked=NUM_ASKED),
    )


def share_in_answers(corpus: Corpus) -> float:
    """Share of the held-out text that is docstring sentences which the questions also teach."""
    answers = {pair.answer for pair in corpus.pairs}
    found = (
        docstrings.first_sentences(docstring)
        for document in corpus.held_out
        if document.name.endswith(".py")
        for _, _, docstring in docstrings.parse_docstrings(document.text, "")
    )
    known = sum(len(sentences.encode()) for sentences in found if sentences in answers)
    return known / corpus.held_out_bytes


def show(decoder: Decoder, tokenizer: Tokenizer) -> str:
    """Completions and answers, as markdown."""
    parts = []
    for prompt in PROMPTS:
        for temperature in (0.0, 0.7):
            done = complete(
                decoder, tokenizer, [prompt], max_tokens=60, temperature=temperature, seed=1
            )[0]
            parts.append(f"temperature {temperature}:\n\n```python\n{prompt}{done.rstrip()}\n```")
    answers = answer(decoder, tokenizer, QUESTIONS)
    rows = [
        f"| {question} | {text.replace('|', '/')} |"
        for question, text in zip(QUESTIONS, answers, strict=True)
    ]
    table = "\n".join(["| question | answer, greedy |", "|---|---|", *rows])
    return table + "\n\n" + "\n\n".join(parts)


CARD = """\
---
license: psf-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# Docstring model

A {millions:.2f} M parameter toy: it answers "What does json.dumps do?" with docstrings of Python's
standard library it has learnt by heart, and continues text in the shape of Python. It does not
reason, write correct programs or know anything else, and a wrong answer reads like a right one.

| | |
|---|---|
| family | Llama: {num_layers} layers, width {hidden_size}, {num_heads} query and {num_kv_heads} \
key-value heads, SwiGLU {intermediate_size}, tied embedding |
| tokenizer | byte-level BPE, {vocab_size} entries |
| context | {context_len} tokens |
| weights | bfloat16, {model_bytes:,} bytes, sha256 `{model_digest}` |
| corpus | {source}; {train_mb:.1f} MB of code and {num_pairs} questions answered by docstrings |
| corpus digest | `{corpus_digest}` |
| tokens seen | {tokens:.1f} M in {num_steps} steps; {chat_percent:.0f} % of rows are questions \
and answers |
| time | {time} of steps on {threads} |
| held-out loss | {loss:.3f} nats per token, **{bpb:.3f} bits per byte** on {held_out_kb:.0f} kB \
of library files left out of the code; {asked_percent:.1f} % of their text, docstrings' first \
sentences, is among the answers |
| recall, all names | {exact}/{asked} drawn at random answered exactly, {begun}/{asked} right in \
the first 20 characters |
| recall, builtins and common modules | {common_exact}/{common_asked} exactly, \
{common_begun}/{common_asked} in the first 20 characters |

Recall asks about names the model was trained on: it measures memory, not understanding.

Made by

```
python -m recipes.train --preset bundled
python -m recipes.train.card out/train-bundled
```

on Python {python} and torch {torch}; another Python has another library, and so another model.

![loss](loss.png)

Licence: the text it learnt from is under the PSF licence version 2, and so are these weights; see
NOTICE. Some files of the library carry notices of their own, which stay with those files.

## What it says

{samples}
"""


NOTICE = """\
model.safetensors and tokenizer.json in this folder were made from the standard library of
Python {python}.

{copyright}

Summary of changes: the text of {num_files} library files (tests, tables and generated help left
out) and the docstrings of {num_pairs} public names were used to learn a vocabulary and the weights
of a neural network. No file of the library is included.

sha256 of the list of files: {files_digest}
sha256 of the corpus:        {corpus_digest}

The licence of that library follows in full.

--------------------------------------------------------------------------------

"""


def write_card(run: Path) -> Path:
    """Measure ``run/model`` and write its README.md, card.json, NOTICE and loss.png."""
    folder = run / "model"
    checkpoints = list_checkpoints(run / "checkpoints")
    check(bool(checkpoints), "run", "the folder of a finished run", f"{run} without checkpoints")
    state = load_checkpoint(checkpoints[-1]).state
    config = TrainConfig.from_json(state.get("config"))
    corpus = load_corpus(
        config.corpus,
        max_bytes=config.max_corpus_bytes,
        held_out_share=config.held_out_share,
        with_pairs=True,
    )
    decoder, tokenizer = load_model(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    measured, entries = measure(decoder, tokenizer, corpus), read_log(run / "log.jsonl")
    weights = (folder / "model.safetensors").read_bytes()
    last = entries[-1]
    seconds = _seconds(entries)
    facts = config.to_json() | {
        "millions": sum(p.numel() for p in decoder.parameters()) / 1e6,
        "model_bytes": len(weights),
        "model_digest": hashlib.sha256(weights).hexdigest(),
        "corpus_digest": corpus.digest,
        "source": corpus.source,
        "train_mb": corpus.train_bytes / 1e6,
        "held_out_kb": corpus.held_out_bytes / 1e3,
        "asked_percent": 100 * share_in_answers(corpus),
        "num_pairs": len(corpus.pairs),
        "tokens": last["num_tokens"] / 1e6,
        "chat_percent": 100 * config.chat_share,
        "time": duration(seconds),
        "threads": f"{config.num_threads or torch.get_num_threads()} CPU thread(s)",
        "loss": measured.held_out.loss,
        "bpb": measured.held_out.bits_per_byte,
        "exact": measured.recall.num_exact,
        "begun": measured.recall.num_begun_right,
        "asked": measured.recall.num_asked,
        "common_exact": measured.common_recall.num_exact,
        "common_begun": measured.common_recall.num_begun_right,
        "common_asked": measured.common_recall.num_asked,
        "python": sys.version.split()[0],
        "torch": state["torch"],
    }
    (folder / "README.md").write_text(CARD.format(**facts, samples=show(decoder, tokenizer)))
    (folder / "card.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    if (run / "loss.png").exists():
        shutil.copy(run / "loss.png", folder / "loss.png")
    _write_notice(folder, corpus, facts)
    return folder / "README.md"


def _write_notice(folder: Path, corpus: Corpus, facts: dict[str, Any]) -> None:
    """NOTICE: what was made of the library, and the licence text that came with it."""
    licence = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if facts["corpus"] is None and licence.exists():
        names = "\n".join(document.name for document in (*corpus.train, *corpus.held_out))
        digest = hashlib.sha256(names.encode()).hexdigest()
        owner = sys.copyright.split("\n\n")[0]
        head = NOTICE.format(
            **facts, num_files=len(corpus.train), files_digest=digest, copyright=owner
        )
        (folder / "NOTICE").write_text(head + licence.read_text())


def _seconds(entries: list[dict[str, Any]]) -> float:
    """Seconds spent in steps, by the pace of each stretch of the log."""
    total, before = 0.0, 0
    for entry in entries:
        total += (entry["num_tokens"] - before) / entry["tokens_per_s"]
        before = entry["num_tokens"]
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m recipes.train.card", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    options = parser.parse_args(arguments)
    try:
        print(write_card(options.run).read_text())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
