# ruff: noqa: E501
"""What a template may cost, reach and be given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from chat_families import CHATML, GEMMA, PHI3, QWEN3
from template_attacks import ENDLESS, ESCAPES
from template_reference import CHAT, Messages, reference, render
from tiny_tokenizers import SEEN, byte_level, folder_of

from paceline.runtime.manifest import BundleError
from paceline.runtime.template.chat_template import ChatTemplate
from paceline.runtime.text.text import Text


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_cannot_work_without_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "paceline.runtime.template.chat_template.WORK", 50_000
    )  # a tenth of the real share, to save time
    with pytest.raises(BundleError) as error:
        render(ENDLESS[name])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.slow
def test_a_template_cannot_use_up_time_or_memory() -> None:
    """With the real share of work, all in one process, whose peak is compared with its size before."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    code = (
        "import template_attacks, time\n"
        "from paceline.runtime.template.chat_template import ChatTemplate\n"
        "from paceline.runtime.manifest import BundleError\n"
        "peak = lambda: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "before, slowest = peak(), 0.0\n"
        "for source in template_attacks.ENDLESS.values():\n"
        "    start = time.process_time()\n"
        "    try: ChatTemplate(source).render([{'role': 'user', 'content': 'x'}])\n"
        "    except BundleError: pass\n"
        "    slowest = max(slowest, time.process_time() - start)\n"
        "print(peak() - before, slowest)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    kibibytes, seconds = done.stdout.split()
    assert int(kibibytes) < 200_000
    assert float(seconds) < 4


def test_jinja2s_own_sandbox_would_let_one_word_fill_memory() -> None:
    """The negative control: a smaller edition of an attack passes there."""
    assert len(reference("{{ 'x'.center(5000000) }}{{ '%5000000d'|format(1) }}", CHAT)) == 10_000_000
    with pytest.raises(BundleError, match="work"):
        render("{{ 'x'.center(50000000) }}")


@pytest.mark.parametrize("name", ESCAPES)
def test_a_template_cannot_reach_python(name: str) -> None:
    chat = [dict(message) for message in CHAT]
    with pytest.raises(BundleError):
        render(ESCAPES[name], chat)
    assert chat == CHAT


def test_long_chats_have_room_to_render() -> None:
    chat = [{"role": ("user", "assistant")[i % 2], "content": SEEN[0] * 3} for i in range(399)]
    for source in (QWEN3, PHI3):
        assert render(source, chat).text == reference(source, chat, add_generation_prompt=True)


def test_a_refusal_of_the_template_is_told_and_never_swallowed() -> None:
    with pytest.raises(ValueError, match="refuses these messages: System role not supported"):
        render(GEMMA)
    with pytest.raises(ValueError, match="refuses these messages: a b") as error:
        render("{{ raise_exception('a\\nb\\x1b[31m') }}")
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_messages_must_be_text_numbers_lists_and_mappings() -> None:
    for chat in ([], [object()], ["hello"], [{"role": "user", "content": object()}], [{"content": b"x"}]):
        with pytest.raises(ValueError, match="message"):
            render(CHATML, chat)  # type: ignore[arg-type]
    nested: object = "x"
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError, match="nest"):
        render(CHATML, [{"role": "user", "content": nested}])


def test_a_bundle_without_a_template_has_none(tmp_path: Path) -> None:
    text = Text.load(folder_of(byte_level(), tmp_path))
    assert ChatTemplate.load(tmp_path, text) is None
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="export the model again"):
        ChatTemplate.load(tmp_path, text)
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(BundleError, match="cannot be read: line 1"):
        ChatTemplate.load(tmp_path, text)


def test_a_filter_over_nothing_finds_nothing() -> None:
    for nothing in ("none", "false", "0", "''", "nothing", "tools"):
        source = (
            f"{{{{ {nothing} | selectattr('a') | list }}}}{{{{ {nothing} | rejectattr('a', 'eq', 1) | list }}}}"
            f"{{{{ {nothing} | select('odd') | list }}}}{{{{ {nothing} | reject | list }}}}"
            f"{{{{ {nothing} | map(attribute='a') | join('-') }}}}{{{{ {nothing} | map('upper') | list | length }}}}"
        )
        assert render(source).text == reference(source, CHAT)


LOOKS_BACK = """\
{% for m in messages %}{% set ns = namespace(last='none') %}{% for e in messages %}
{% if loop.index < loop.length and e.role != 'system' %}{% set ns.last = e.role %}{% endif %}{% endfor %}
{{ ns.last ~ m.role }}{% endfor %}"""


LOOKS_BACKWARDS = """\
{% for m in messages %}{% set ns = namespace(found=0) %}{% for e in messages[:loop.index0] | reverse %}
{% if not ns.found and e['role'] == 'user' and e.get('tool_calls') is none %}{% set ns.found = loop.index %}{% endif %}
{% endfor %}{{ ns.found }}{% endfor %}"""


LETTERS = """\
{% set ns = namespace(images=0) %}{% for m in messages %}{% for part in m.content %}
{% if part.type == 'image' and part.image is defined %}{% set ns.images = ns.images + 1 %}
{% elif part is mapping and part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}{{ ns.images }}"""


@pytest.mark.parametrize("source", [LOOKS_BACK, LOOKS_BACKWARDS, LETTERS])
@pytest.mark.parametrize("shape", [(250, 20), (30, 2000), (1, 60_000)])
def test_a_long_conversation_has_the_work_that_its_template_needs(
    source: str, shape: tuple[int, int]
) -> None:
    turns, size = shape
    chat = [{"role": ("user", "assistant")[i % 2], "content": "word " * (size // 5)} for i in range(turns)]
    assert render(source, chat).text == reference(source, chat)


@pytest.mark.slow
def test_so_has_one_of_thousands_of_messages() -> None:
    chat = [{"role": ("user", "assistant")[i % 2], "content": "word"} for i in range(1500)]
    for source in (LOOKS_BACK, LOOKS_BACKWARDS):
        assert render(source, chat).text == reference(source, chat)


def test_a_limit_that_is_reached_does_not_blame_the_file() -> None:
    with pytest.raises(BundleError, match=r"more work \(in line 1\) than 4 such messages") as error:
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    assert "repair" not in str(error.value)


def test_values_of_the_caller_reach_the_template() -> None:
    values = {"reasoning_effort": "high", "thinking_budget": 12, "flags": {"a": [True]}}
    source = "{{ reasoning_effort }}{{ thinking_budget + 1 }}{{ flags.a[0] }}{{ enable_thinking is defined }}"
    shown = render(source, values=values)
    assert shown.text == reference(source, CHAT, **values) == "high13TrueFalse"
    assert not any(shown.own)
    for name in ("messages", "bos_token", "add_generation_prompt", "a b"):
        with pytest.raises(ValueError, match="may not be called"):
            render(source, values={name: "x"})


@pytest.mark.export
def test_messages_are_completed_as_transformers_completes_them() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = "{% for m in messages %}{{ m.keys() | list | sort | join(',') }}:{{ m.thinking }};{{ m.reasoning_content }}|{% endfor %}"
    for extra in (
        {"reasoning": "a"},
        {"thinking": "a"},
        {"reasoning_content": "a"},
        {"reasoning": "a", "thinking": "b"},
        {"reasoning": "", "thinking": None},
        {"reasoning_content": "a", "thinking": "b"},
        {},
    ):
        chat: Messages = [{"role": "assistant", "content": "x", **extra}]
        kept = [{key: value for key, value in chat[0].items() if value is not None}]
        (expected,), _ = render_jinja_template([kept], chat_template=source)
        assert render(source, chat).text == expected


def test_markup_escapes_what_is_added_and_keeps_its_marks() -> None:
    chat: Messages = [{"role": "user", "content": "<b>"}]
    for expression in (
        "'a <' | safe + messages[0].content",
        "messages[0].content + ('&' | e)",
        "'&' | e | e",
        "('<%s>' | safe) % messages[0].content",
        "('{}' | safe).format(messages[0].content)",
        "(', ' | safe).join(['<', '&'|e])",
        "('a' | safe).replace('a', '<') ~ ('a' | safe | replace('a', '<'))",
        "('a b' | safe).split()[1] + '<'",
        "('a' | safe | upper)[0] + '<'",
        "('<' | safe)[0] ~ '<'",
    ):
        source = "{{ " + expression + " }}"
        assert render(source, chat).text == reference(source, chat)
    assert render("{{ '<x>' | safe + messages[0].content }}", chat).own == b"\1" * 3 + bytes(9)
    assert render("{{ ('<' ~ messages[0].content) | e }}", chat).own == b"\1" * 4 + bytes(9)


def test_the_clock_takes_flags_and_self_has_no_blocks() -> None:
    for source in ("{{ strftime_now('%-d.%-m. %-I:%M %% %d') }}", "{{ self.x }}{{ self is defined }}"):
        assert render(source).text == reference(source, CHAT)


def test_an_else_follows_a_loop_of_which_no_pass_ended() -> None:
    for body in ("{% break %}", "{% continue %}", "{% if i == 2 %}{% break %}{% endif %}", ""):
        source = "{% for i in [1, 2, 3] %}{{ i }}" + body + "{% else %}none{% endfor %}"
        assert render(source).text == reference(source, CHAT)
