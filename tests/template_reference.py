"""Chats, and what jinja2 makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox

from paceline.runtime.template.chat_template import ChatTemplate
from paceline.runtime.template.marked import Marked

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


NOON = datetime(2026, 3, 4, 12, 0, 0)


Messages = list[dict[str, object]]
CHAT: Messages = [
    {"role": "system", "content": " Be <b>good</b> & brief. "},
    {"role": "user", "content": "Hi, é 日本 😀\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello\n"},
    {"role": "user", "content": "  and now? "},
]


CHATS = {"all": CHAT, "no system": CHAT[1:], "one": CHAT[1:2], "ends with answer": CHAT[:3]}


class Generation(jinja2.ext.Extension):
    """The reference's {% generation %}: its body in a call block, as training tools have it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def reference(source: str, messages: Sequence[Mapping[str, object]], **names: object) -> str:
    """What jinja2 itself makes of a template, with what transformers gives to templates."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": refuse, "strftime_now": NOON.strftime}
    known = {"tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>"}
    return environment.from_string(source).render(messages=messages, **known | names)


def render(source: str, messages: Sequence[Mapping[str, object]] = CHAT, **options: object) -> Marked:
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    return template.render(messages, now=NOON, **options)  # type: ignore[arg-type]
