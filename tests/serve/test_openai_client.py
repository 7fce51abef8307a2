"""The official client, over a real socket."""

import asyncio

import openai
import pytest

from tests.serve.models import EOS, tiny_decoder, tiny_tokenizer
from tests.serve.oracle import greedy

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0) as made:
        yield made


def greedy_text(prompt: list[int], max_tokens: int) -> str:
    tokens = greedy(tiny_decoder(), tuple(prompt), max_tokens, EOS)
    return tiny_tokenizer().decode(tokens)


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.max_model_len) == ("tiny", "model", 256)
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_completion_is_the_models_greedy_continuation(client):
    answer = client.completions.create(
        model="tiny", prompt="def add(", max_tokens=12, temperature=0
    )
    prompt = tiny_tokenizer().encode("def add(")
    assert answer.object == "text_completion"
    assert answer.choices[0].text == greedy_text(prompt, 12)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.total_tokens == len(prompt) + answer.usage.completion_tokens


def test_streamed_text_equals_whole_text(client):
    options = {"model": "tiny", "prompt": "hello world", "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**options).choices[0]
    chunks = list(client.completions.create(**options, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [
        whole.finish_reason
    ]
    assert len({c.id for c in chunks}) == 1


def test_streamed_token_ids_are_whole_though_their_text_is_held_back(client):
    """Among them pieces of characters, whose text comes with a later token."""
    tokens, options = greedy(tiny_decoder(), (5, 6, 7), 24, EOS), {"model": "tiny", "stream": True}
    assert len(tokens) > 8
    extra = {"return_token_ids": True}
    more = {**options, "max_tokens": 24, "temperature": 0, "extra_body": extra}
    chunks = list(client.completions.create(prompt=[5, 6, 7], **more))
    assert [t for c in chunks for t in c.choices[0].token_ids] == tokens
    assert any(c.choices[0].token_ids and not c.choices[0].text for c in chunks)
    whole = client.chat.completions.create(messages=CHAT, **{**more, "stream": False})
    chunks = list(client.chat.completions.create(messages=CHAT, **more))
    parts = [getattr(c.choices[0], "token_ids", None) or [] for c in chunks]
    assert [t for part in parts for t in part] == whole.choices[0].token_ids


@pytest.mark.parametrize(
    "prompt", ["hello", [5, 6, 7], ["hello", "world"], [[5, 6, 7], [8, 9]]], ids=str
)
def test_prompts_may_be_texts_tokens_or_lists_of_either(client, prompt):
    answer = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=4, temperature=0, n=2, extra_body={"seed": 1}
    )
    prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    assert [c.index for c in answer.choices] == list(range(2 * len(prompts)))
    encode = tiny_tokenizer().encode
    for choice in answer.choices:
        one = prompts[choice.index // 2]
        tokens = encode(one) if isinstance(one, str) else one
        assert choice.text == greedy_text(tokens, 4)


def test_max_tokens_of_a_completion_defaults_to_16(client):
    answer = client.completions.create(model="tiny", prompt="a", extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_echo_gives_the_prompt_and_its_scores(client):
    answer = client.completions.create(
        model="tiny", prompt="def add(", max_tokens=0, echo=True, logprobs=2
    )
    choice = answer.choices[0]
    assert choice.text == "def add("
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
    assert "".join(choice.logprobs.tokens) == "def add("
    assert choice.logprobs.text_offset[:2] == [0, len(choice.logprobs.tokens[0])]
    assert answer.usage.completion_tokens == 0


def test_echo_streams_the_prompt_first(client):
    options = {"model": "tiny", "prompt": "def add(", "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(**options, echo=True, logprobs=1).choices[0]
    chunks = list(client.completions.create(**options, echo=True, logprobs=1, stream=True))
    assert chunks[0].choices[0].text.startswith("def add(")
    assert "".join(c.choices[0].text for c in chunks) == whole.text
    tokens = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.tokens]
    offsets = [
        o for c in chunks if c.choices[0].logprobs for o in c.choices[0].logprobs.text_offset
    ]
    assert tokens == whole.logprobs.tokens
    assert offsets == whole.logprobs.text_offset


def test_a_chat_answer_follows_the_template(client):
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, max_completion_tokens=10, temperature=0
    )
    prompt = tiny_tokenizer().apply_chat_template(CHAT, add_generation_prompt=True)
    message = answer.choices[0].message
    assert (answer.object, message.role) == ("chat.completion", "assistant")
    assert message.content == greedy_text(prompt, 10)
    assert answer.usage.prompt_tokens == len(prompt)


def test_content_may_come_in_parts(client):
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}],
        }
    ]
    whole = [{"role": "user", "content": "hello"}]
    options = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    first, second = (
        client.chat.completions.create(messages=m, **options).choices[0].message.content
        for m in (parts, whole)
    )
    assert first == second


def test_chat_chunks_have_the_shape_that_accumulators_rely_on(client):
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=CHAT,
            max_tokens=6,
            n=3,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    *ordinary, last = chunks
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    roles = [c.choices[0] for c in ordinary if c.choices[0].delta.role]
    assert [(c.index, c.delta.content) for c in roles] == [(0, ""), (1, ""), (2, "")]
    assert [c.choices[0] for c in ordinary[:3]] == roles
    for index in range(3):
        finishes = [c.choices[0].finish_reason for c in ordinary if c.choices[0].index == index]
        assert finishes[-1] == "length"
        assert finishes[:-1] == [None] * (len(finishes) - 1)
    assert all(c.usage is None for c in ordinary)
    assert last.choices == []
    assert last.usage.completion_tokens == 18


def test_the_stream_helper_accumulates(client):
    options = {"model": "tiny", "messages": CHAT, "max_tokens": 12, "temperature": 0}
    free = client.chat.completions.create(**options).choices[0].message.content
    options["stop"] = free[6:8]  # the helper takes an end by length for a failure
    whole = client.chat.completions.create(**options)
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=3, logprobs=True, top_logprobs=4, temperature=0
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 4
        assert token.logprob == token.top_logprobs[0].logprob
        assert bytes(token.bytes).decode(errors="replace") == token.token


def test_bytes_of_logprobs_join_to_the_text_even_across_characters(client):
    """The model says single bytes of a character; only their bytes tell which."""
    ids = tiny_tokenizer().encode("é😀")
    content = []
    for token_id in ids:
        answer = client.chat.completions.create(
            model="tiny",
            messages=CHAT,
            max_tokens=1,
            logprobs=True,
            temperature=0,
            logit_bias={token_id: 100},
        )
        content += answer.choices[0].logprobs.content
    assert len(content) > 2
    assert bytes(byte for token in content for byte in token.bytes).decode() == "é😀"


def test_a_seed_repeats_a_draw_and_n_samples_differ(client):
    options = {"model": "tiny", "prompt": "hello", "max_tokens": 12, "temperature": 1, "n": 3}
    first = client.completions.create(**options, seed=11)
    again = client.completions.create(**options, seed=11)
    assert [c.text for c in first.choices] == [c.text for c in again.choices]
    assert len({c.text for c in first.choices}) > 1


def test_stop_strings_never_show_even_in_a_stream(client):
    options = {"model": "tiny", "prompt": "hello", "max_tokens": 30, "temperature": 0}
    extra = {"ignore_eos": True}
    free = client.completions.create(**options, extra_body=extra).choices[0].text
    stop = free[5:8]
    choice = client.completions.create(**options, extra_body=extra, stop=[stop]).choices[0]
    assert (choice.text, choice.finish_reason) == (free[: free.index(stop)], "stop")
    chunks = client.completions.create(**options, extra_body=extra, stop=stop, stream=True)
    assert "".join(c.choices[0].text for c in chunks) == choice.text


def test_a_repeated_prompt_is_reported_as_cached(client):
    options = {"model": "tiny", "prompt": list(range(100, 160)), "max_tokens": 1}
    salted = {"cache_salt": "mine"}
    client.completions.create(**options, extra_body=salted)
    answer = client.completions.create(**options, extra_body=salted)
    assert answer.usage.prompt_tokens_details.cached_tokens == 56
    other = client.completions.create(**options, extra_body={"cache_salt": "other"})
    assert other.usage.prompt_tokens_details.cached_tokens == 0


def test_unknown_fields_are_accepted(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=CHAT,
        max_tokens=1,
        user="me",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        tools=[],
        response_format={"type": "text"},
        extra_body={"something_new": {"deep": [1]}},
    )
    assert answer.usage.completion_tokens == 1


def test_errors_are_of_the_clients_classes(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-9", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[1] * 300)
    assert long.value.code == "context_length_exceeded"
    assert "maximum context length is 256 tokens" in long.value.message
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(model="tiny", messages=CHAT, tools=[tool])
    assert tools.value.param == "tools"
    assert tools.value.request_id


def test_async_clients_in_parallel(server):
    """Streams and plain calls side by side, each with its own right answer."""

    async def one(client: openai.AsyncOpenAI, index: int) -> bool:
        prompt = [10 + index, *range(40, 60)]
        options = {"model": "tiny", "prompt": prompt, "max_tokens": 10, "temperature": 0}
        if index % 2:
            text = (await client.completions.create(**options)).choices[0].text
        else:
            stream = await client.completions.create(**options, stream=True)
            text = "".join([chunk.choices[0].text async for chunk in stream])
        return text == greedy_text(prompt, 10)

    async def run() -> list[bool]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x") as client:
            return await asyncio.gather(*(one(client, index) for index in range(24)))

    assert all(asyncio.run(run()))


def test_tokenize_and_detokenize(server):
    status, found = server.post("/tokenize", {"prompt": "def add(", "return_token_strs": True})
    assert status == 200
    assert found["tokens"] == tiny_tokenizer().encode("def add(")
    assert (found["count"], "".join(found["token_strs"])) == (len(found["tokens"]), "def add(")
    assert server.post("/detokenize", {"tokens": found["tokens"]}) == (200, {"prompt": "def add("})
    status, chat = server.post("/tokenize", {"messages": CHAT})
    assert chat["tokens"] == tiny_tokenizer().apply_chat_template(CHAT, add_generation_prompt=True)
