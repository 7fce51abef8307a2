"""Chat templates render as transformers renders them, and cannot reach out of the sandbox."""

import json
import sys
import time

import pytest

from recipes.model import chat
from recipes.model.chat import ChatTemplate

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
TOOLS = """
{%- set ns = namespace(seen=0, last='') -%}
{% if tools %}
# Tools
{% for tool in tools %}
{{ tool | tojson }}
{{ tool | tojson(indent=2) }}
{% endfor %}
{% endif %}
    {% for m in messages %}
  {% if m.role == 'skip' %}{% continue %}{% endif %}
{% set ns.seen = ns.seen + 1 %}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}
{% elif m.content is string %}
{{ m['role'] | upper }}: {{ m.content | trim }}
{% else %}
{% for part in m.content %}{{ part.text | default('?') }}{% endfor %}
{% endif %}
{% if m.tool_calls is defined %}{{ m.tool_calls | tojson }}{% endif %}
{% if ns.seen >= 5 %}{% break %}{% endif %}
{% endfor %}
{{ ns.seen }} {{ dict(a=1) }} {{ '%03d' % 7 }} {{ strftime_now('%Y') }}
{{ extra | default('none') }}
{%- if add_generation_prompt %}GO{% endif %}
"""
CHAT = [
    {"role": "system", "content": " Be <brief> & 'kind'. "},
    {"role": "user", "content": "hé 😀"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "more"},
]
RICH = [
    *CHAT[1:3],
    {"role": "skip", "content": "never"},
    {"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"ü": 1}}]},
]
FUNCTIONS = [{"type": "function", "function": {"name": "f", "description": "<b> ü"}}]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def theirs(source: str, messages: list, **options) -> str:
    """What transformers makes of it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    kept = [{k: v for k, v in m.items() if v is not None} for m in messages]
    rendered, _ = render_jinja_template(
        [kept],
        chat_template=source,
        **(NAMES | options),  # type: ignore[arg-type]
    )
    return rendered[0]  # type: ignore[return-value]


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(
    ("source", "messages"),
    [(LLAMA2, CHAT), (LLAMA2, CHAT[1:]), (LLAMA2, CHAT[1:2]), (TOOLS, CHAT), (TOOLS, RICH)],
)
def test_renders_as_transformers_does(source, messages, prompt):
    options = {"tools": FUNCTIONS, "add_generation_prompt": prompt, "extra": "given"}
    ours = ChatTemplate(source, NAMES).render(messages, **options)
    assert ours == theirs(source, messages, **options)
    assert ours.strip()


def test_the_templates_own_words_reach_the_user():
    with pytest.raises(ValueError, match="Conversation roles must alternate"):
        ChatTemplate(LLAMA2, NAMES).render([CHAT[2]])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        (["hello"], r"messages\[0\]: expected an object"),
        ([{"role": "user", "content": object()}], r"messages\[0\].content: expected plain JSON"),
        ([{"role": "user"}], "expected messages it can render"),
    ],
)
def test_bad_messages_give_one_clear_error(messages, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate("{% for m in messages %}{{ m['content'] + '' }}{% endfor %}").render(messages)


def test_messages_are_not_changed():
    messages = json.loads(json.dumps(RICH))
    ChatTemplate(TOOLS, NAMES).render(messages)
    assert messages == RICH


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ raise_exception.__globals__.x }}",
    "{{ strftime_now.__code__.x }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ (messages | attr('__class__')) ~ 1 / 0 }}",
    "{{ '{0.__class__}'.format(1) ~ 1 / 0 }}",
    "{% set n = namespace(__class__=1) %}",
    "{% set n = namespace(a=1) %}{% set n._x = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages.pop() }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ range(200000) | list }}",
    "{{ 'x' * 1000000000 }}",
    "{{ 1000000000 * 'x' }}",
    "{{ [1] * 1000000000 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 1 / 0 }}",
    "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ dict.fromkeys.__globals__ }}",
    "{{ [].__class__.__base__ }}",
    "{{ request.application.__globals__ }}",
    "{{ undefined_name.attribute }}",
    "{{ messages['x']['y'] }}",
    "{{ {}.a.b }}",
    "{{ raise_exception('no') }}",
    "{{ messages | tojson(indent='x' * 100000000) }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_is_refused_at_once(source):
    start = time.perf_counter()
    template = ChatTemplate(source)
    with pytest.raises(ValueError, match="chat template"):
        template.render(CHAT)
    assert time.perf_counter() - start < 2.0


LOOPS = [
    "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "{% for i in range(90000) %}{% if range(9000) | select('odd') | list %}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
]


@pytest.mark.parametrize("source", LOOPS)
def test_a_template_that_loops_is_ended(source, monkeypatch):
    monkeypatch.setattr(chat, "MAX_RENDER_S", 0.05)
    before, start = sys.gettrace(), time.thread_time()
    with pytest.raises(ValueError, match=r"at most 0\.05 s to render"):
        ChatTemplate(source).render(CHAT)
    assert time.thread_time() - start < 2.0
    assert sys.gettrace() is before


def test_nesting_is_bounded():
    deep: list = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ValueError, match="levels of nesting"):
        ChatTemplate("x").render([{"role": "user", "content": deep}])
