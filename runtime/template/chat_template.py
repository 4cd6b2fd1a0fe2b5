"""Chat templates: from messages to the text a model was trained on, with every character's author known.

Templates are untrusted. jinja2 reads them and nothing of jinja2 runs them (see `template_run`): no Python
object is within reach, and time and memory are bounded by a work meter.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from paceline.memory.errors import ArgumentError
from paceline.runtime.manifest import BundleError
from paceline.runtime.template.marked import Marked, foreign, said, written
from paceline.runtime.template.run import Run
from paceline.runtime.template.values import (
    Blocks,
    Builtin,
    FaultError,
    LimitError,
    Meter,
    Namespace,
    Value,
    bounded,
    text_of,
)

TEMPLATE = "chat_template.jinja"
LONGEST_SOURCE = 131_072
"""Characters. The longest templates in use have some tens of thousands."""
WORK = 500_000
"""Units that every rendering may spend (see `Meter`)."""
WORK_PER_CHARACTER = 20
"""Units more for every character that the caller puts in: some templates go through contents letter by letter."""
WORK_PER_MESSAGE = 5_000
"""Units more for every message."""
WORK_PER_PAIR = 25
"""Units more for every two messages: some templates look back over all of them at each."""
MOST_WORK = 100_000_000
"""Units that no conversation takes a rendering beyond."""
ROLES = frozenset(
    "system user assistant tool developer function ipython model observation environment human bot gpt context "
    "documents control critic tool_call tool_calls tool_response tool_result function_call function_response "
    "available_tools latest_reminder".split()
)
"""Roles that templates may build control tokens from, as in `'<|' + message.role + '|>'`."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""What callers call the thoughts of a message; a template reads them as the first or the second, as in transformers."""
SPOKEN = frozenset(("content", *REASONING))
"""What a model said, in a message of its own."""
RESERVED = frozenset(("self", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token"))
"""Variables that are not the caller's to choose."""

_CLOCK = re.compile(r"(?:[^%]|%[-_0^#]?[a-zA-Z%])*")
_UNPADDED = re.compile(r"%(%|-[a-zA-Z])")


class Ends(Protocol):
    """A tokenizer, as far as a template needs it."""

    @property
    def bos(self) -> str | None:
        """What begins a text."""

    @property
    def eos(self) -> str | None:
        """What ends an answer."""


class ChatTemplate:
    """A parsed chat template. bos, eos: texts of the tokens it may write, None where the model has none.

    Raises BundleError, one line, for a template that cannot be read.
    """

    def __init__(self, source: str, *, bos: str | None = None, eos: str | None = None) -> None:
        if len(source) > LONGEST_SOURCE:
            raise BundleError(
                f"the chat template has {len(source)} characters, more than {LONGEST_SOURCE}: shorten it"
            )
        self.source = source
        self._tree = _parse(source)
        self._specials = {"bos_token": bos, "eos_token": eos}

    @classmethod
    def load(cls, folder: Path, text: Ends) -> ChatTemplate | None:
        """The template of a bundle, None where it has none; `text` knows the tokens it may write."""
        path = folder / TEMPLATE
        try:
            with path.open(encoding="utf-8", newline="") as file:
                source = file.read(LONGEST_SOURCE + 1)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path}: {_line(error)}; export the model again") from None
        return cls(source, bos=text.bos, eos=text.eos)

    def names(self, variable: str) -> bool:
        """Whether a variable stands anywhere in the template."""
        return re.search(rf"\b{re.escape(variable)}\b", self.source) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        values: Mapping[str, object] | None = None,
        now: datetime | None = None,
    ) -> Marked:
        """The chat as one text whose marks say what the template wrote itself.

        values: more variables, such as `enable_thinking`. now: what `strftime_now` shows. Raises ValueError where the
        template refuses these messages, BundleError where it is at fault or the work it does has no end.
        """
        if not messages:
            raise ArgumentError("a chat needs at least one message")
        try:
            names = self._names(messages, tools, values or {}) | {
                "add_generation_prompt": add_generation_prompt
            }
        except RecursionError:
            raise ArgumentError("the messages nest too deeply") from None
        meter = Meter(_share(len(messages), _characters(*names.values())))
        run = Run(names | _functions(meter, now), meter)
        try:
            return run.render(self._tree.body)
        except _RefusedError as error:
            raise ArgumentError(f"the chat template refuses these messages: {_line(error)}") from None
        except LimitError:
            raise BundleError(
                f"the chat template does more work (in line {run.line}) than {len(messages)} such messages may take: "
                "begin a new conversation, shorten this one or continue raw text "
                "(`paceline run --raw`, in Python: generate)"
            ) from None
        except RecursionError:
            problem = "it nests too deeply"
        except MemoryError:
            problem = "it needs too much memory"
        except FaultError as error:
            problem = str(error)
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            problem = f"{type(error).__name__}: {error}"
        raise BundleError(
            f"the chat template failed in line {run.line}: {_line(problem)}; "
            "export the model again with another template, or continue raw text "
            "(`paceline run --raw`, in Python: generate)"
        )

    def _names(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None,
        values: Mapping[str, object],
    ) -> dict[str, Value]:
        """The variables of a template, from the caller's values."""
        for name in values:
            if name in RESERVED or not name.isidentifier():
                raise ArgumentError(f"a template value may not be called {name!r}")
        names: dict[str, Value] = {name: _outside(value) for name, value in values.items()}
        names |= {name: written(text) for name, text in self._specials.items() if text is not None}
        return {
            "self": Blocks(),
            "documents": None,
            **names,
            "messages": list(map(_message, messages)),
            "tools": _outside(tools),
        }


class _RefusedError(Exception):
    """`raise_exception(...)` in a template."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant said, for training; here its body simply runs."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance variable)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Scope:
        """The body in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _parse(source: str) -> jinja2.nodes.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is not worth a warning to the user
            tree = environment.parse(source)
    except jinja2.TemplateSyntaxError as error:
        problem = f"line {error.lineno}: {error.message}"
    except RecursionError:
        problem = "it nests too deeply"
    except (ValueError, ArithmeticError, AssertionError) as error:
        problem = str(error)
    else:
        return _with_authors(tree)
    raise BundleError(f"the chat template cannot be read: {_line(problem)}")


def _with_authors(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """Every text in the template becomes text that the template wrote; numbers are checked once, here."""
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, jinja2.nodes.TemplateData):
            node.data = written(node.data)  # type: ignore[assignment]
        elif isinstance(node, jinja2.nodes.Const):
            if isinstance(node.value, str):
                node.value = written(node.value)
            elif isinstance(node.value, int):
                try:
                    bounded(node.value)
                except FaultError as error:
                    raise BundleError(f"the chat template cannot be read: {error}") from None
        pending.extend(node.iter_child_nodes())
    return tree


def _message(message: Mapping[str, object]) -> Value:
    if not isinstance(message, Mapping):
        raise ArgumentError(
            f"a message must be a mapping with role and content, not {type(message).__name__}"
        )
    message = {str(key): value for key, value in message.items() if value is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    role = message.get("role")
    answers = role in ("assistant", "model")
    values = {
        foreign(key): _outside(value, said if answers and key in SPOKEN else foreign)
        for key, value in message.items()
    }
    if isinstance(role, str) and role in ROLES:
        values[foreign("role")] = written(role)
    return values


def _outside(value: object, mark: Callable[[str], Marked] = foreign) -> Value:
    """A value from the caller, with every text in it marked."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, Mapping):
        return {foreign(str(key)): _outside(item, mark) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_outside(item, mark) for item in value]
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and value.bit_length() <= 256:
        return value
    raise ArgumentError(
        f"a message or value may hold text, numbers, lists and mappings, not {type(value).__name__}"
    )


def _characters(*values: Value) -> int:
    """How much the caller put in: characters, and one for each number, element and key."""
    total, pending = 0, list(values)
    while pending:
        value = pending.pop()
        total += 1 + (len(value) if isinstance(value, Marked) else 0)
        if isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
    return total


def _share(messages: int, characters: int) -> int:
    """Units that a rendering may spend: what the templates of known models need for such a conversation, and more."""
    grown = WORK_PER_MESSAGE * messages + WORK_PER_PAIR * messages**2 + WORK_PER_CHARACTER * characters
    return min(WORK + grown, MOST_WORK)


def _functions(meter: Meter, now: datetime | None) -> dict[str, Value]:
    def refuse(args: Sequence[Value], kwargs: dict[str, Value]) -> Value:
        raise _RefusedError(text_of(args[0], meter).text if args else "it does not say why")

    def clock(args: Sequence[Value], kwargs: dict[str, Value]) -> Value:
        pattern = text_of(args[0], meter).text if args else ""
        if len(pattern) > 200 or not _CLOCK.fullmatch(pattern):
            raise FaultError("strftime_now takes a short pattern of plain % letters")
        shown = now or datetime.now()

        def unpadded(place: re.Match[str]) -> str:
            return (
                "%%"
                if place[1] == "%"
                else shown.strftime("%" + place[1][1:]).lstrip("0 ").replace("%", "%%") or "0"
            )

        # Not every system knows %-d and its like.
        return foreign(shown.strftime(_UNPADDED.sub(unpadded, pattern)))

    def numbers(args: Sequence[Value], kwargs: dict[str, Value]) -> Value:
        bounds = [arg for arg in args if isinstance(arg, int)]
        if not 1 <= len(bounds) == len(args) <= 3:
            raise FaultError("range() takes one to three whole numbers")
        found = range(*bounds)
        meter.spend(_length(found))
        return list(found)

    def mapping(args: Sequence[Value], kwargs: dict[str, Value]) -> dict[Value, Value]:
        known: dict[Value, Value] = {}
        for arg in args:
            if not isinstance(arg, dict):
                raise FaultError("dict() and namespace() take a mapping or named values")
            meter.spend(len(arg))
            known |= arg
        return known | {written(name): value for name, value in kwargs.items()}

    def namespace(args: Sequence[Value], kwargs: dict[str, Value]) -> Namespace:
        return Namespace({text_of(name, meter).text: value for name, value in mapping(args, kwargs).items()})

    functions = {
        "raise_exception": refuse,
        "strftime_now": clock,
        "range": numbers,
        "dict": mapping,
        "namespace": namespace,
    }
    return {name: Builtin(call) for name, call in functions.items()}


def _length(numbers: range) -> int:
    try:
        return len(numbers)
    except OverflowError:
        raise FaultError("a range is too long") from None


def _line(problem: object) -> str:
    """A message in one printable line of at most 200 characters."""
    text = " ".join(str(problem)[:2000].split())
    return "".join(character for character in text if character.isprintable())[:200]
