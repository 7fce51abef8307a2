import hashlib
import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from recipes.model import dense_attend, load_model
from recipes.model.bundled import bundled_model
from recipes.model.tokenizer import Tokenizer as ChatTokenizer
from recipes.train import PRESETS, TrainConfig
from recipes.train.config import resolve
from recipes.train.recall import answer, complete

FOLDER = bundled_model()
PROMPTS = [
    "import os\nimport sys\n\n\ndef main():\n",
    'class Stack:\n    """A stack."""\n\n    def __init__(self',
    "    def __repr__(self):\n        return",
]
CARD = json.loads((FOLDER / "card.json").read_text())


@pytest.fixture(scope="module")
def decoder():
    return load_model(FOLDER)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_the_folder_is_whole_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    needed = "config.json generation_config.json model.safetensors tokenizer.json loss.png NOTICE"
    assert names >= {*needed.split(), "tokenizer_config.json", "chat_template.jinja", "README.md"}
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    assert (FOLDER / "loss.png").stat().st_size <= 100_000
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in (FOLDER / "NOTICE").read_text()


def test_the_card_speaks_of_this_file():
    card = (FOLDER / "README.md").read_text()
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert CARD["model_digest"] == digest
    assert digest in card
    assert CARD["corpus_digest"] in card
    assert f"{CARD['bpb']:.3f} bits per byte" in card
    assert f"{CARD['asked_percent']:.1f} % of their text" in card
    assert "python -m recipes.train --preset bundled" in card


def test_the_card_names_the_settings_of_the_preset():
    preset = PRESETS["bundled"]()
    settings = {name: CARD[name] for name in preset.to_json() if name in CARD}
    assert len(settings) >= 28
    assert resolve(TrainConfig(**settings)) == resolve(preset)


def test_it_loads_in_transformers_with_the_same_scores(decoder):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    ours = load_model(FOLDER, dtype=torch.float32)
    tokens = torch.arange(10, 60)
    attend = dense_attend(ours.config, torch.tensor([0, 50], dtype=torch.int32))
    with torch.no_grad():
        scores = ours.logits(ours(tokens, torch.arange(50), attend))
        expected = theirs(tokens[None]).logits[0]
    assert (scores - expected).abs().max() < 1e-4


def test_tokens_and_chats_are_those_of_transformers():
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDER)
    ours = ChatTokenizer.from_folder(FOLDER)
    text = "def f(x):\n    return x  # é€😀\n"
    assert ours.encode(text) == theirs(text)["input_ids"]
    messages = [
        {"role": "system", "content": "Be brief and exact."},
        {"role": "user", "content": "What does json.dumps do?"},
    ]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered.endswith("<|assistant|>")
    assert (
        ours.apply_chat_template(messages, add_generation_prompt=True)
        == theirs(rendered)["input_ids"]
    )
    assert ours.eos_token_id == theirs.eos_token_id


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_goes_on_in_the_shape_of_python(decoder, tokenizer, prompt):
    text = complete(decoder, tokenizer, [prompt], max_tokens=60)[0]
    words = ("self", "def ", "return", "import", "None", "class ", '"""', "if ")
    assert sum(word in text for word in words) >= 2, text


def test_it_answers_what_json_dumps_does(decoder, tokenizer):
    questions = ["What does json.dumps do?", "What does math.sqrt do?"]
    assert answer(decoder, tokenizer, questions) == [
        "Serialize ``obj`` to a JSON formatted ``str``.",
        "Return the square root of x.",
    ]


def test_it_says_what_it_is(decoder, tokenizer):
    assert "recalls Python docstrings" in answer(decoder, tokenizer, ["Hello"])[0]


def test_the_card_shows_what_the_model_says(decoder, tokenizer):
    prompt = "def fibonacci(n):\n"
    text = complete(decoder, tokenizer, [prompt], max_tokens=60)[0]
    assert prompt + text.rstrip() in (FOLDER / "README.md").read_text()
