"""Each bad body gets one clear 4xx in OpenAI's shape, and the server goes on serving."""

import json

import pytest

from tests.serve.models import tiny_decoder

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]
VOCAB = tiny_decoder().config.vocab_size


def chat(**fields):
    return CHAT, {"messages": USER, "max_tokens": 1} | fields


def text(**fields):
    return TEXT, {"prompt": "hi", "max_tokens": 1} | fields


def raw(body: str):
    return TEXT, body.encode()


CASES = {
    "empty body": (raw(""), 400, None),
    "no JSON": (raw("{prompt: hi}"), 400, None),
    "cut JSON": (raw('{"prompt": "hi"'), 400, None),
    "an array": (raw("[1, 2]"), 400, None),
    "a number": (raw("3"), 400, None),
    "null": (raw("null"), 400, None),
    "NaN": (raw('{"prompt": "hi", "temperature": NaN}'), 400, None),
    "infinity": (raw('{"prompt": "hi", "temperature": 1e999}'), 400, "temperature"),
    "invalid UTF-8": ((TEXT, b'{"prompt": "\xff\xfe"}'), 400, None),
    "lone surrogate": (raw('{"prompt": "\\ud800"}'), 400, None),
    "deep nesting": (raw('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}"), 400, None),
    "deep nesting of a field": (raw('{"prompt": ' + "[" * 5000 + "]" * 5000 + "}"), 400, None),
    "5000 digits": (raw('{"prompt": "hi", "max_tokens": ' + "9" * 5000 + "}"), 400, None),
    "400 digits": (text(max_tokens=10**399), 400, "max_tokens"),
    "no prompt": ((TEXT, {"max_tokens": 1}), 400, "prompt"),
    "no messages": ((CHAT, {"max_tokens": 1}), 400, "messages"),
    "empty prompt": (text(prompt=""), 400, "prompt"),
    "empty prompt list": (text(prompt=[]), 400, "prompt"),
    "empty token list": (text(prompt=[[]]), 400, "prompt"),
    "mixed prompt list": (text(prompt=["a", 1]), 400, "prompt"),
    "boolean tokens": (text(prompt=[True]), 400, "prompt[0]"),
    "float tokens": (text(prompt=[1.5]), 400, "prompt[0]"),
    "too many prompts": (text(prompt=["a"] * 257), 400, "prompt"),
    "negative token": (text(prompt=[5, -1]), 400, "prompt"),
    "token beyond the logits": (text(prompt=[5, VOCAB]), 400, "prompt"),
    "huge token": (text(prompt=[10**300]), 400, "prompt"),
    "prompt beyond the context": (text(prompt=[1] * 257), 400, "prompt"),
    "long text": (text(prompt="word " * 50_000), 400, "prompt"),
    "prompt and output beyond the context": (text(prompt=[1] * 250, max_tokens=7), 400, "prompt"),
    "empty messages": (chat(messages=[]), 400, "messages"),
    "no role": (chat(messages=[{"content": "hi"}]), 400, "messages[0].role"),
    "unknown role": (chat(messages=[{"role": "robot", "content": "x"}]), 400, "messages[0].role"),
    "messages as text": (chat(messages="hi"), 400, "messages"),
    "an image": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        400,
        "messages[0].content[0]",
    ),
    "unknown model": (chat(model="gpt-9"), 404, "model"),
    "model as number": (chat(model=3), 400, "model"),
    "temperature as text": (chat(temperature="1"), 400, "temperature"),
    "temperature as boolean": (chat(temperature=True), 400, "temperature"),
    "negative temperature": (chat(temperature=-1), 400, "temperature"),
    "huge temperature": (chat(temperature=1e30), 400, "temperature"),
    "top_p above 1": (chat(top_p=1.5), 400, "top_p"),
    "top_k of -2": (chat(top_k=-2), 400, "top_k"),
    "max_tokens 0": (chat(max_tokens=0), 400, "max_tokens"),
    "max_tokens 0 without echo": (text(max_tokens=0), 400, "max_tokens"),
    "negative max_tokens": (chat(max_tokens=-5), 400, "max_tokens"),
    "huge max_tokens": (chat(max_tokens=10**18), 400, "max_tokens"),
    "max_tokens beyond the context": (chat(max_tokens=5000), 400, "messages"),
    "min_tokens above max_tokens": (chat(min_tokens=2), 400, "min_tokens"),
    "min_tokens beyond the context": (
        (CHAT, {"messages": USER, "min_tokens": 10**6}),
        400,
        "min_tokens",
    ),
    "n of 0": (chat(n=0), 400, "n"),
    "huge n": (chat(n=10**9), 400, "n"),
    "n of 129": (text(n=129), 400, "n"),
    "seed beyond 64 bits": (chat(seed=2**70), 400, "seed"),
    "stop as number": (chat(stop=1), 400, "stop"),
    "huge stop list": (chat(stop=["a"] * 100_000), 400, "stop"),
    "empty stop string": (chat(stop=[""]), 400, "stop"),
    "long stop string": (chat(stop="x" * 10_000), 400, "stop"),
    "stop token beyond the logits": (chat(stop_token_ids=[VOCAB]), 400, "stop_token_ids"),
    "bias on a name": (chat(logit_bias={"the": 1}), 400, "logit_bias"),
    "bias on a negative token": (chat(logit_bias={"-1": 1}), 400, "logit_bias"),
    "bias beyond the logits": (chat(logit_bias={str(VOCAB): 1}), 400, "logit_bias"),
    "huge bias": (chat(logit_bias={"1": 1e9}), 400, "logit_bias"),
    "top_logprobs alone": (chat(top_logprobs=2), 400, "top_logprobs"),
    "too many top_logprobs": (chat(logprobs=True, top_logprobs=21), 400, "logprobs"),
    "logprobs beyond 20": (text(logprobs=21), 400, "logprobs"),
    "stream_options alone": (chat(stream_options={"include_usage": True}), 400, "stream_options"),
    "tools": (chat(tools=[{"type": "function", "function": {"name": "f"}}]), 400, "tools"),
    "forced tool": (chat(tool_choice="required"), 400, "tool_choice"),
    "JSON mode": (chat(response_format={"type": "json_object"}), 400, "response_format"),
    "a schema": (chat(guided_json={"type": "object"}), 400, "guided_json"),
    "a suffix": (text(suffix="end"), 400, "suffix"),
    "best_of": (text(best_of=3), 400, "best_of"),
    "audio": (chat(modalities=["audio"]), 400, "modalities"),
    "long salt": (chat(cache_salt="x" * 1000), 400, "cache_salt"),
    "huge priority": (chat(priority=10**12), 400, "priority"),
    "reserved template argument": (
        chat(chat_template_kwargs={"control_tokens": True}),
        400,
        "chat_template_kwargs.control_tokens",
    ),
    "template argument self": (
        chat(chat_template_kwargs={"self": True}),
        400,
        "chat_template_kwargs.self",
    ),
    "more samples than are ever queued": (text(prompt=["a"] * 10, n=128), 400, "n"),
    "2 MB body": (text(prompt="x" * 2_000_000), 413, None),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_and_the_server_goes_on(server, name, stream):
    (path, body), status, param = CASES[name]
    if stream and isinstance(body, dict) and "stream_options" not in body:
        body = body | {"stream": True}
    got, payload, headers = server.request("POST", path, body)
    assert got == status, payload
    assert headers["x-request-id"]
    error = payload["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert 5 < len(error["message"]) < 600
    assert isinstance(error["code"], str)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    canary, answer = server.post(TEXT, {"prompt": [3, 4, 5], "max_tokens": 2, "temperature": 0})
    assert (canary, answer["usage"]["prompt_tokens"]) == (200, 3)


@pytest.mark.parametrize(
    ("content", "status"),
    [("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("application/json", 200)],
)
def test_only_json_is_read(server, content, status):
    body = json.dumps({"prompt": "hi", "max_tokens": 1}).encode()
    got, _, _ = server.request("POST", TEXT, body, {"content-type": content})
    assert got == status


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", TEXT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("POST", "/tokenize", 400, "invalid_value"),
        ("POST", "/detokenize", 400, "invalid_type"),
    ],
)
def test_other_routes_answer_in_the_same_shape(server, method, path, status, code):
    got, payload, _ = server.request(method, path, {} if method == "POST" else None)
    assert (got, payload["error"]["code"]) == (status, code)


@pytest.mark.parametrize("tokens", [[-1], [VOCAB], [10**30], [1.5], ["a"]])
def test_detokenize_checks_its_ids(server, tokens):
    status, payload = server.post("/detokenize", {"tokens": tokens})
    assert (status, payload["error"]["type"]) == (400, "invalid_request_error")
