# ruff: noqa: E501
"""Expressions and statements made by chance: what jinja2's sandbox renders, we render alike."""

from __future__ import annotations

import copy
import warnings

from hypothesis import given, settings
from hypothesis import strategies as st
from test_template import CHAT, reference, render

from paceline.runtime.manifest import BundleError

ATOMS = (
    "1|0|-2|2.5|-0.0|'a'|'B <b>'|''|'x,y'|none|true|false|nothing|messages|messages[0]|messages[0].content|[1, 2, 3]|"
    "['b', 'A']|[]|{}|{'k': 1, 'a': 'v'}|(1, 'z')|x|ns.v|loop.index|[nothing]|self.x|messages[-1].role"
).split("|")
MARKUP = ["('<' | safe)", "('&' | e)", "(messages[0].content | e)"]
FILTERS = (
    "abs|capitalize|center(5)|count|d('q')|default('q', true)|dictsort|e|first|float|indent|int|join|join(',')|last|length|"
    "list|lower|max|min|replace('a', '<')|round|safe|sort|string|sum|title|tojson|trim|upper|wordcount"
).split("|")
LAZY = (
    "map('string')|map('upper')|map(attribute='role')|reject|select|selectattr('role')|rejectattr('role', 'eq', 'user')|"
    "unique|reverse"
).split("|")
METHODS = (
    "upper()|strip()|split(',')|replace('a', '<')|startswith('a')|get('k')|index('a')|count('a')|title()|format(1, '<')|"
    "join(['<', 'b'])|splitlines()|lstrip('a')|find('a')|rfind('a')|rsplit('a', 1)"
).split("|")
TESTS = "defined|none|string|number|mapping|iterable|sequence|true|boolean|integer|float|undefined|eq(1)|in([1, 'a'])".split(
    "|"
)
OPERATORS = "+ - * / // % ~ == != and or in".split()
PLACES = ("0", "-1", ":2", "1:", "::-1", "'k'")
PRINTED = ("<generator", "Markup(", "MARKUP(", "markup(", "iterator", "reversed object", "method")
"""How Python shows what is no value of a chat template."""


def _more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def made(shape: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(*parts).map(lambda chosen: shape.format(*chosen))

    return st.one_of(
        made("({} {} {})", inner, st.sampled_from(OPERATORS), inner),
        made("({} | {})", inner, st.sampled_from(FILTERS)),
        made("({} | {} | list)", inner, st.sampled_from(LAZY)),
        made("({}).{}", inner, st.sampled_from(METHODS)),
        made("({} is {})", inner, st.sampled_from(TESTS)),
        made("({})[{}]", inner, st.sampled_from(PLACES)),
        made("({} if {} else {})", inner, inner, inner),
        made("[{}, {}]", inner, inner),
        made("(not -{})", inner),
    )


EXPRESSION = st.recursive(st.sampled_from([*ATOMS, *MARKUP]), _more, max_leaves=5)


def _statements(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    ends = st.sampled_from(
        ["", "{% break %}", "{% continue %}", "{% if loop.index == 2 %}{% break %}{% endif %}"]
    )
    lists = st.one_of(EXPRESSION, st.sampled_from(["range(3)", "messages", "[1, 2]", "{'a': 1}.items()"]))
    name = st.sampled_from(["x", "ns.v"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(name, EXPRESSION).map(lambda t: f"{{% set {t[0]} = {t[1]} %}}"),
        st.tuples(EXPRESSION, inner, inner).map(
            lambda t: f"{{% if {t[0]} %}}{t[1]}{{% else %}}{t[2]}{{% endif %}}"
        ),
        st.tuples(lists, inner, ends, inner, inner).map(
            lambda t: f"{{% for m in {t[0]} %}}{t[1]}{t[2]}{t[3]}{{% else %}}{t[4]}{{% endfor %}}"
        ),
        inner.map(lambda t: f"{{% set x %}}{t}{{% endset %}}{{{{ x }}}}"),
        inner.map(lambda t: f"{{% filter e %}}{t}{{% endfilter %}}"),
        st.tuples(inner, EXPRESSION).map(
            lambda t: f"{{% macro f(x, y=1) %}}{t[0]}{{{{ x }}}}{{% endmacro %}}{{{{ f({t[1]}) }}}}"
        ),
    )


STATEMENT = st.recursive(EXPRESSION.map(lambda e: f"{{{{ {e} }}}}"), _statements, max_leaves=4)


def _check(source: str) -> None:
    """Where both render they agree. What we refuse and jinja2 renders is named in docs/templates.md, or has no use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = reference(source, copy.deepcopy(CHAT))
    except Exception:
        return
    if any(word in expected for word in PRINTED):
        return
    try:
        assert render(source).text == expected
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(EXPRESSION)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_expressions_made_by_chance_mean_what_they_mean_in_jinja2(expression: str) -> None:
    _check("{% set ns = namespace(v=1) %}{{ " + expression + " }}")


@given(STATEMENT)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_statements_made_by_chance_mean_what_they_mean_in_jinja2(statements: str) -> None:
    _check("{% set ns = namespace(v=1) %}" + statements)
