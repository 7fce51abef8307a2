"""Offline generation."""

import itertools

import pytest

from recipes.model import save_model
from recipes.serve import LLM, SamplingParams
from recipes.serve.loading import load
from recipes.serve.runner import Runner
from tests.serve.models import EOS, tiny_decoder, tiny_loaded, tiny_tokenizer
from tests.serve.oracle import greedy

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(loaded=tiny_loaded(max_waiting=3))


def expected(prompt: list[int], max_tokens: int = 8) -> list[int]:
    return greedy(tiny_decoder(), tuple(prompt), max_tokens, EOS)


def test_answers_come_in_the_order_of_the_prompts(llm):
    prompts = [[i, i + 1, i + 2] for i in range(1, 21)]  # more than the queue holds
    answers = llm.generate(prompts, GREEDY)
    assert [a.prompt_token_ids for a in answers] == prompts
    assert [a.token_ids for a in answers] == [expected(p) for p in prompts]
    assert all(a.finished for a in answers)


def test_a_text_a_token_list_and_lists_of_them(llm):
    ids = tiny_tokenizer().encode("hello")
    for prompts in ("hello", ids, ["hello"], [ids]):
        (answer,) = llm.generate(prompts, GREEDY)
        assert answer.token_ids == expected(ids)
        assert answer.text == tiny_tokenizer().decode(answer.token_ids)


def test_one_setting_per_prompt(llm):
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 5)]
    assert [len(a.token_ids) for a in llm.generate(["a", "b"], params)] == [1, 5]
    with pytest.raises(ValueError, match="one or 3"):
        llm.generate(["a", "b", "c"], params)


def test_chat_uses_the_template(llm):
    messages = [{"role": "user", "content": "hello"}]
    (answer,) = llm.chat(messages, GREEDY)
    prompt = tiny_tokenizer().apply_chat_template(messages, add_generation_prompt=True)
    assert answer.prompt_token_ids == prompt
    assert len(llm.chat([messages, messages], GREEDY)) == 2


def test_one_bad_prompt_refuses_the_call_before_anything_runs(llm):
    with pytest.raises(ValueError, match="token ids"):
        llm.generate([[1, 2], [9999]], GREEDY)
    with pytest.raises(ValueError, match="mix"):
        llm.generate([1, "a"], GREEDY)  # type: ignore
    for prompts in (None, [1.5], [["a"]], b"abc", [b"abc"], {"a": 1}):
        with pytest.raises(ValueError, match="prompts: expected texts or lists of token ids, got"):
            llm.generate(prompts, GREEDY)
    assert not llm.engine.has_work()


@pytest.mark.parametrize("where", ["forward", "logits"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_call_interrupted_inside_a_step_leaves_a_usable_engine(llm, monkeypatch, where, error):
    calls, original = itertools.count(), getattr(Runner, where)

    def interrupted(self, *args):
        if next(calls) == 2:
            raise error
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, where, interrupted)
        with pytest.raises(error):
            llm.generate([[1, 2, 3]] * 8, GREEDY)
    assert not llm.engine.has_work()
    (answer,) = llm.generate([[1, 2, 3]], GREEDY)
    assert answer.token_ids == expected([1, 2, 3])


def test_progress_counts_samples_and_tokens(llm, capsys):
    llm.generate(
        [[1, 2], [3, 4]], SamplingParams(max_tokens=4, n=2, ignore_eos=True), progress=True
    )
    line = capsys.readouterr().err
    assert "4/4 samples, 16 tokens" in line


def test_no_prompts_give_no_answers(llm):
    assert llm.generate([], GREEDY) == []


def test_a_folder_loads_and_explains_itself(tmp_path):
    save_model(tiny_decoder(), tmp_path / "tiny-model", tiny_tokenizer())
    llm = LLM(tmp_path / "tiny-model", kv_bytes=1 << 20, max_model_len=128)
    (answer,) = llm.generate([[1, 2, 3]], GREEDY)
    assert answer.token_ids == expected([1, 2, 3])
    text = llm.loaded.explain()
    assert llm.loaded.name == "tiny-model"
    runner = llm.engine.runner
    assert f"{(runner.num_blocks - 1) * runner.block_size} tokens fit" in text
    assert "up to 128 tokens each" in text


def test_a_context_beyond_the_models_is_refused(tmp_path):
    save_model(tiny_decoder(), tmp_path, tiny_tokenizer())
    with pytest.raises(ValueError, match="max_model_len"):
        LLM(tmp_path, max_model_len=257)


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_without_a_setting_the_cache_is_no_larger_than_useful(tmp_path):
    save_model(tiny_decoder(), tmp_path, tiny_tokenizer())
    llm = LLM(tmp_path, max_num_seqs=2)
    assert llm.engine.runner.cache.num_tokens == 2 * 256  # type: ignore
