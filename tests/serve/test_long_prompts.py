"""Prompts that take long to tokenize do not hold up other clients."""

import threading
import time

import pytest

from tests.serve.live_server import serving
from tests.serve.models import tiny_loaded


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a" * 100] * 200, "max_tokens": 1}),
        ("/tokenize", {"prompt": "a" * 20_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    ],
    ids=["many", "long", "chat"],
)
def test_others_are_answered_meanwhile(path, body, monkeypatch):
    with serving(tiny_loaded(max_num_seqs=64)) as live:
        tokenizer, begun = live.service.tokenizer, threading.Event()

        def slow(original, seconds):
            def convert(*args, **options):
                begun.set()
                time.sleep(seconds)
                return original(*args, **options)

            return convert

        seconds = 0.01 if path == "/v1/completions" else 2.0
        monkeypatch.setattr(tokenizer, "encode", slow(tokenizer.encode, seconds))
        chat = slow(tokenizer.apply_chat_template, seconds)
        monkeypatch.setattr(tokenizer, "apply_chat_template", chat)
        asked = threading.Thread(target=live.request, args=("POST", path, body))
        asked.start()
        assert begun.wait(20)
        assert live.request("GET", "/health")[0] == 200
        assert asked.is_alive()
        asked.join()
