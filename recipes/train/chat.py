"""The chat format: control tokens, the template, and how a documented name becomes a question.

A conversation is a run of turns, each ``<|role|>`` text ``<|end|>``; the model continues after
``<|assistant|>`` and ends its turn with ``<|end|>``.
"""

import builtins
import random

from recipes.train.corpus import Pair

END = "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
PAD = "<|pad|>"
CONTROL_TOKENS = (PAD, END, *ROLES.values())

TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('message role: expected system, user or assistant, got ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer questions about the Python standard library.",
    "Answer in one sentence.",
    "Be brief and exact.",
)
PLAIN = "What does {name} do?"
QUESTIONS = {
    "module": ("What is {name}?", "What is the {name} module?", PLAIN, "Explain {name}"),
    "class": (PLAIN, "What is {name}?", "Explain {name}", "what is {name}"),
    "other": (PLAIN, PLAIN, "What is {name}?", "Explain {name}.", "what does {name}() do"),
}
ABOUT = (
    "I am a very small model that recalls Python docstrings. "
    "Ask me what a function does, for example: What does json.dumps do?"
)
SMALL_TALK = tuple(
    (question, ABOUT)
    for question in (
        "Hello",
        "Hi",
        "Hello!",
        "Hi there",
        "Who are you?",
        "What are you?",
        "What can you do?",
        "Help",
        "How are you?",
        "Tell me a joke.",
        "What is your name?",
    )
)

# Asked about more often than the rest: builtins and the modules most programs import.
_COMMON = (
    "bisect collections copy csv datetime functools glob heapq itertools json math os pathlib "
    "random re shutil statistics string subprocess sys tempfile textwrap threading time"
)
COMMON_MODULES = frozenset(_COMMON.split())


def is_common(pair: Pair) -> bool:
    """Whether this is a builtin or a public name of a much used module."""
    first, *rest = pair.name.split(".")
    if first in COMMON_MODULES:
        return len(rest) <= 2
    return first in vars(builtins) and not first[0].isupper()


def ask(pair: Pair, choice: random.Random) -> tuple[str, str]:
    """One of the ways to ask for a documented name, and its answer."""
    forms = QUESTIONS.get(pair.kind, QUESTIONS["other"])
    return choice.choice(forms).format(name=pair.name), pair.answer


def turn(role: str, text: str) -> str:
    """One turn as the template writes it."""
    return f"{ROLES[role]}{text}{END}"
