# ruff: noqa: E501
"""Templates that try to use up time or memory, or to reach Python. Each must end soon, in text or in one line."""

from __future__ import annotations

_SQUARE = "{% set ns = namespace(s=START) %}{% for i in range(COUNT) %}{% set ns.s = STEP %}{% endfor %}"


def _grow(start: str, step: str, count: int, end: str = "{{ ns.s }}") -> str:
    return _SQUARE.replace("START", start).replace("STEP", step).replace("COUNT", str(count)) + end


ENDLESS = {
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "nested empty loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "long range": "{{ range(1000000000)|list|length }}",
    "range beyond words": "{{ range(10 ** 30)|length }}",
    "wide number": "{{ '%1000000000d'|format(1) }}",
    "width from value": "{{ '%.*f' % (1000000000, 1.0) }}",
    "wide named number": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "center": "{{ 'x'.center(3000000000) }}",
    "center filter": "{{ 'x'|center(3000000000) }}",
    "ljust": "{{ 'x'.ljust(3000000000) }}",
    "zfill": "{{ 'x'.zfill(3000000000) }}",
    "expandtabs": "{{ '\\t'.expandtabs(3000000000) }}",
    "format width": "{{ '{:>3000000000}'.format(1) }}",
    "doubling": _grow("'xxxxxxxx'", "ns.s + ns.s", 40),
    "doubling by ~": _grow("'xxxxxxxx'", "ns.s ~ ns.s", 40),
    "doubling by join": _grow("'xxxxxxxx'", "[ns.s, ns.s]|join", 40),
    "doubling by format": _grow("'xxxxxxxx'", "'%s%s' % (ns.s, ns.s)", 40),
    "doubling by braces": _grow("'xxxxxxxx'", "'{0}{0}'.format(ns.s)", 40),
    "doubling by replace": _grow("'xxxxxxxx'", "ns.s.replace('x', 'xx')", 40),
    "doubling lists": _grow("[1]", "ns.s + ns.s", 40, ""),
    "doubling blocks": "{% set x = 'abcdefgh' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40 + "{{ x }}",
    "shared lists": _grow("[1]", "[ns.s, ns.s]", 60),
    "shared lists as json": _grow("[1]", "[ns.s, ns.s]", 60, "{{ ns.s|tojson }}"),
    "shared lists compared": _grow(
        "[1]", "[ns.s, ns.s]", 60, _grow("[1]", "[ns.s, ns.s]", 60, "").replace("ns", "o")
    )
    + "{{ ns.s == o.s }}",
    "deep lists": _grow("[1]", "[ns.s]", 20000),
    "deep lists compared": _grow("[1]", "[ns.s]", 20000, "")
    + _grow("[1]", "[ns.s]", 20000, "").replace("ns", "o")
    + "{{ ns.s == o.s }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "times": "{{ 'x' * 10000000000 }}",
    "times reversed": "{{ 10000000000 * 'x' }}",
    "times list": "{{ [0] * 10000000000 }}",
    "power tower": "{{ 10 ** 10 ** 10 }}",
    "large power": "{{ 2 ** 100000000 }}",
    "squares": _grow("9", "ns.s * ns.s", 60),
    "complex": "{{ (0 - 8) ** 0.5 }}",
    "float overflow": "{{ 10.0 ** 400 }}",
    "zero division": "{{ 1 // 0 }}",
    "6000 digits": "{{ " + "9" * 6000 + " }}",
    "4000 digits": "{{ " + "9" * 4000 + " }}",
    "4000 digits from text": "{{ ('9' * 4000)|int }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two endless macros": "{% macro f() %}{{ g() }}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(25) }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nots": "{{ " + "not " * 5000 + "1 }}",
    "lists in lists": "{{ " + "[" * 60000 + "]" * 60000 + " }}",
    "ifs in ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "long sum": "{{ 1" + "+1" * 4000 + " }}",
    "long attribute": "{{ a" + ".b" * 4000 + " }}",
    "long filter": "{{ 'a'" + "|upper" * 4000 + " }}",
    "open": "{{" * 60000,
    "raw": "{% raw %}" * 10000,
    "too long": "x" * 200_000,
    "replace": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "replace nothing": "{{ ('x' * 100000).replace('', 'y' * 100000) }}",
    "join": "{{ ('x' * 100000).join(range(10000)|map('string')) }}",
    "join filter": "{{ range(100000)|join('x' * 100000) }}",
    "indent": "{{ 'a\\nb'|indent(3000000000) }}",
    "indent lines": "{{ ('a\\n' * 100000)|indent(100000) }}",
    "json indent": "{{ [1]|tojson(indent=3000000000) }}",
    "json separators": "{{ range(10000)|list|tojson(separators=('x' * 1000000, ':')) }}",
    "sort": "{{ range(400000)|sort|length }}",
    "sort long texts": "{% set x = 'y' * 1000000 %}{{ ([x, x, x, x] * 10000)|sort|length }}",
    "unique": "{{ range(100000)|unique|list|length }}",
    "sum of lists": "{{ ([[1] * 1000] * 1000)|sum(start=[]) }}",
    "in list": "{% set l = range(100000)|list %}{% for i in range(100000) %}{{ -1 in l }}{% endfor %}",
    "in text": "{% set l = 'a' * 1000000 %}{% for i in range(100000) %}{{ 'b' in l }}{% endfor %}",
    "count": "{% set l = 'ab' * 1000000 %}{% for i in range(100000) %}{{ l.count('a') }}{% endfor %}",
    "upper": "{% set l = 'ab' * 1000000 %}{% for i in range(100000) %}{% set y = l|upper %}{% endfor %}",
    "slices": "{% set l = 'ab' * 1000000 %}{% for i in range(100000) %}{% set y = l[::-1] %}{% endfor %}",
    "split": "{{ ('ab' * 1000000).split('a')|length }}",
    "splits": "{% set l = 'ab' * 1000 %}{% for i in range(100000) %}{% set y = l.split('a') %}{% endfor %}",
    "splitlines": "{{ ('\\n' * 4000000).splitlines()|length }}",
    "characters": "{% for c in 'a' * 5000000 %}{% endfor %}",
    "title": "{{ ('a ' * 1000000)|title|length }}",
    "wordcount": "{{ ('a ' * 5000000)|wordcount }}",
    "maps": "{% for i in range(100000) %}{% set y = range(1000)|map('string')|list %}{% endfor %}",
    "rounding": "{{ 1.5|round(1000000000) }}",
    "clock width": "{{ strftime_now('%1000000000d') }}",
    "clock length": "{{ strftime_now('%d' * 1000000) }}",
    "looking from the right": "{% set x = 'a' * 900000 %}{% set y = 'ab' ~ 'a' * 400000 %}{{ x.rfind(y) }}{{ x.rsplit(y) }}{{ x.rpartition(y) }}",
    "many parameters": "{% macro f("
    + ",".join(f"a{i}" for i in range(15000))
    + ") %}{% endmacro %}{% for i in range(99999) %}{{ f() }}{% endfor %}",
    "many names": "{% set l = range(15000) %}{% for i in range(99999) %}{% set "
    + ",".join(f"a{i}" for i in range(15000))
    + " = l %}{% endfor %}",
    "long path": "{% set p = 'a.' * 100000 %}{% for i in range(99999) %}{% set y = [{}] * 100 | map(attribute=p) %}{% endfor %}",
    "keys that share a hash": "{{ {"
    + ",".join(f"{(2**61 - 1) * i}: 0" for i in range(2000))
    + "} | length }}",
    "lists kept": _grow("[]", "[ns.s, messages[0].items(), {'a': 1, 'b': 2}.copy()]", 99999),
    "recursive loop": "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
}

ESCAPES = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "init": "{{ namespace.__init__.__globals__ }}",
    "self": "{{ self._TemplateReference__context.x }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "attr": "{{ ''|attr('__class__') }}",
    "map attribute": "{{ [messages]|map(attribute='__class__.__mro__')|list }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'role': 'x'}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "list as key": "{{ {[1]: 2} }}",
}
