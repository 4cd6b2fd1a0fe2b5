# ruff: noqa: E501
"""Chat templates mean what they mean in jinja2."""

from __future__ import annotations

import pytest
from chat_families import FAMILIES, LLAMA3, QWEN3
from hypothesis import given, settings
from hypothesis import strategies as st
from template_reference import CHAT, CHATS, Messages, reference, render

from paceline.runtime.manifest import BundleError


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", CHATS)
@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_families_render_as_jinja2_renders_them(
    family: str, which: str, thinking: bool | None, prompt: bool
) -> None:
    source, chat = FAMILIES[family], CHATS[which]
    names = {} if thinking is None else {"enable_thinking": thinking}
    if family == "gemma" and chat[0]["role"] == "system":
        with pytest.raises(ValueError, match="refuses these messages: System role not supported"):
            render(source, chat, add_generation_prompt=prompt, values=names)
        return
    expected = reference(source, chat, add_generation_prompt=prompt, **names)
    assert render(source, chat, add_generation_prompt=prompt, values=names).text == expected


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5), st.sampled_from(sorted(FAMILIES)))
@settings(max_examples=60, deadline=None)
def test_any_content_renders_as_jinja2_renders_it(contents: list[str], family: str) -> None:
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    expected = reference(FAMILIES[family], chat, add_generation_prompt=True)
    assert render(FAMILIES[family], chat).text == expected


def test_tools_and_tool_calls_render_as_jinja2_renders_them() -> None:
    tools = [
        {
            "type": "function",
            "function": {"name": "weather", "parameters": {"city": ["é", 1, 2.5, None, True]}},
        }
    ]
    call = {"function": {"name": "weather", "arguments": {"city": "Zürich <b>", "days": 3}}}
    chat: Messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "no\n"},
        {"role": "tool", "content": '{"a": 1}'},
        {"role": "assistant", "content": "No.", "reasoning_content": "\nhm\n"},
    ]
    for source in (QWEN3, LLAMA3):
        expected = reference(source, chat, tools=tools, add_generation_prompt=True)
        assert render(source, chat, tools=tools).text == expected


EXPRESSIONS = """\
1 + 2 * 3 - 4 // 3 % 2
7 / 2
2 ** 10
-3 + +4
1 < 2 <= 2 != 3
'a' < 'b'
not 0 and 'x' or 'y'
'yes' if messages else 'no'
'never' if false
'a' 'b' ~ 1 ~ none ~ true ~ 1.5
[1, 'a', (2, 3), {'k': 'v'}]
(1,)
messages[0]['content'].strip().upper()
messages[-1].content | trim | title
messages[::-1][0].role
messages[1:3] | length
messages[0].content[2:6]
messages[0].content[::-1]
messages[0].nothing is defined
messages[0].nothing
messages[9] is undefined
nothing | default('d')
'' | default('d', true)
nothing | default
messages | map(attribute='role') | join(', ')
messages | selectattr('role', 'equalto', 'user') | list | length
messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list
messages | selectattr('content') | list | count
[3, 1, 2] | sort
[3, 1, 2] | sort(reverse=true) | first
['b', 'A', 'c'] | sort
['b', 'A', 'c'] | sort(case_sensitive=true) | last
messages | sort(attribute='content') | map(attribute='role') | list
{'b': 1, 'a': 2} | dictsort
{'b': 1, 'a': 2}.items() | list
{'b': 1, 'a': 2} | items | list
{'b': 1}.get('c', 'd') ~ {'b': 1}.get('b')
'b' in {'b': 1} and 'c' not in {'b': 1}
1 in [1.0, 2]
'bc' in 'abcd'
['a', 'b', 'a', 'A'] | unique | list
[1, 2, 3] | sum ~ [1, 5, 2] | max ~ [4, 2] | min
'a,b,,c'.split(',')
' a  b '.split()
'a b c d'.split(' ', 2)
'a b c d'.rsplit(' ', 1)
'a-b'.partition('-')
'abcabc'.replace('b', 'XX') ~ 'abcabc'.replace('b', '', 1)
'abc' | replace('b', '')
'abc'.startswith('ab') and 'abc'.endswith(('x', 'bc'))
'abcabc'.find('c') ~ 'abcabc'.rfind('c') ~ 'abcabc'.count('b') ~ 'abcabc'.index('b')
'xxabxx'.strip('x') ~ 'xxab'.lstrip('x') ~ 'abxx'.rstrip('x')
'abc'.removeprefix('a') ~ 'abc'.removesuffix('bc')
'a\\nb\\r\\nc'.splitlines()
', '.join(['a', 'b'])
'ab' | center(7) ~ 'abc'.center(6) ~ 'a'.ljust(3) ~ 'a'.rjust(3)
'%s has %d of %05.2f %x%%' % ('a', 3, 2.5, 255)
'%5s|%-5s|' | format('a', 'b')
'{} {}'.format('a', 1) ~ '{1}{0}{x}'.format('a', 'b', x='c') ~ '{{}}'.format()
'hello wORLD' | capitalize ~ 'hello-wORLD foo' | title
'<a href="x">&\\'' | e
'a\\nb\\n\\nc' | indent(2) ~ 'a\\nb' | indent(2, true)
'12' | int + '1.9' | int + 'x' | int(5) + ' 7 ' | int
'1.5' | float + 'x' | float
3.7 | int ~ 3.14159 | round(2) ~ 2.5 | round ~ -3 | abs
'ff' | int(0, 16)
{'a': [1, 'é', none, true, 1.5], 'b': {}} | tojson
{'a': [1, {'b': 2}]} | tojson(indent=2)
messages | tojson | length
[] | first is undefined
'abc' | first ~ 'abc' | last ~ 'abc' | list ~ 'abc' | reverse
[1, 2] | reverse | list
'abc' is string and 1 is number and true is boolean and 1 is integer and 1.0 is float
messages is iterable and messages is sequence and messages[0] is mapping and none is none
true is number and true is not integer and 3 is odd and 4 is even and 9 is divisibleby(3)
1 is sameas(1) and 2 is gt(1) and 2 is in([1, 2]) and 'A' is upper
range(3) | list ~ range(1, 9, 3) | list ~ range(3, 0, -1) | list
dict(a=1, b='c')
dict({'a': 1}, b=2).b
namespace(a=1).a
([1, 2] + [3]) ~ ((1,) + (2,))
'ab' * 3 ~ [0] * 2
nothing ~ 'x'
nothing == nothing
nothing | length
loop is defined
messages[0].items is defined
strftime_now('%d %b %Y %H:%M')
'a\\tb\\u00e9\\x41'
'%s' % none
'is mapping' if {} is mapping
'straße' | upper ~ 'ΑΣ' | lower ~ 'İ'.lower()
messages[0]['get']('role')
messages[0].keys() | list ~ {'a': 1}.values() | list
"""


@pytest.mark.parametrize("expression", EXPRESSIONS.splitlines())
def test_expressions_mean_what_they_mean_in_jinja2(expression: str) -> None:
    source = "{{ " + expression + " }}"
    assert render(source).text == reference(source, CHAT)


STATEMENTS = {
    "loop values": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}"
    "{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem is defined }}{{ loop.nextitem }}"
    "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }};{% endfor %}",
    "loop over nothing": "{% for m in [] %}x{% else %}none{% endfor %}{% for m in nothing %}x{% else %}none{% endfor %}",
    "filtered loop": "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.role }}{% else %}no{% endfor %}",
    "unpacking": "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }}{% endfor %}{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "break and continue": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}"
    "{% endif %}{{ i }}{% endfor %}",
    "inner names stay inside": "{% set x = 1 %}{% for i in range(3) %}{{ x }}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "names set in an if": "{% if true %}{% set x = 1 %}{% endif %}{{ x }}{% if false %}{% set y = 1 %}{% endif %}{{ y }}",
    "namespace": "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.s = ns.s ~ m.role[0] %}{% endfor %}{{ ns.n }}{{ ns['s'] }}",
    "macro": "{% macro f(a, b='d', c=a) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f('x') }}{{ f('x', c='z') }}{{ f() }}",
    "macro sees later names": "{% macro f() %}{{ y }}{% endmacro %}{% set y = 1 %}{{ f() }}",
    "macro names stay inside": "{% set x = 1 %}{% macro f() %}{% set x = 2 %}{{ x }}{% endmacro %}{{ f() }}{{ x }}",
    "call block": "{% macro f(n) %}<{{ caller(n) }}>{% endmacro %}{% call(k) f(3) %}{{ k }}!{% endcall %}",
    "set block": "{% set x %}a{{ 1 }}{% endset %}{{ x }}{% set y | upper | trim %} b {% endset %}{{ y }}",
    "filter block": "{% filter upper | replace('A', 'x') %}banana{{ 1 }}{% endfilter %}",
    "with": "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "white space": "  {% if true %}\n  a\n  {%- endif %}\n\n{% for i in [1] -%}\n  b\n{%+ endfor %}\n{# note #}\nc {{- 1 -}} d\n",
    "raw": "{% raw %}{{ x }}{% endraw %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }}{% set q = 1 %}{% endgeneration %}{{ q }}{% endfor %}",
    "elif": "{% for i in range(3) %}{% if i == 0 %}a{% elif i == 1 %}b{% else %}c{% endif %}{% endfor %}",
    "loop inside loop": "{% for a in [1, 2] %}{% set outer = loop %}{% for b in [1] %}{{ outer.index }}{{ loop.index }}"
    "{% endfor %}{{ loop.index }}{% endfor %}",
    "characters": "{% for c in 'aé😀' %}{{ c }}.{% endfor %}",
    "chained macros": "{% macro g(x) %}({{ x }}){% endmacro %}{% macro f(x) %}{{ g(g(x)) }}{% endmacro %}{{ f(1) }}",
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_mean_what_they_mean_in_jinja2(name: str) -> None:
    assert render(STATEMENTS[name]).text == reference(STATEMENTS[name], CHAT)


FAILING = [
    "'a' + 1",
    "none + 'a'",
    "nothing.x",
    "nothing + 1",
    "1 < 'a'",
    "f()",
    "none | length",
    "'a' | nofilter",
]
FAILING += [
    "messages | first | join(1, 2, 3)",
    "'%d' % 'a'",
    "'a'.index('b')",
    "[1].x.y",
    "messages.nothing()",
]
FAILING += ["1 is nosuchtest", "{[]: 1}", "'a' | int(base='x', other=1)", "'a'.split('')", "['a', 1] | sort"]


@pytest.mark.parametrize("expression", FAILING)
def test_what_fails_in_jinja2_fails_in_one_line_that_names_the_place(expression: str) -> None:
    source = "one\ntwo {{ " + expression + " }}"
    with pytest.raises(Exception):  # noqa: B017, PT011 (jinja2 raises whatever Python raises)
        reference(source, CHAT)
    with pytest.raises(BundleError, match="in line 2") as error:
        render(source)
    assert "\n" not in str(error.value)
