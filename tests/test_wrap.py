"""Text that is broken between words while it streams."""

from __future__ import annotations

import pytest
from wcwidth import wcswidth

from paceline.wrap import WordWrap, fold


def shown(width: int, *pieces: str) -> list[str]:
    """The lines that a terminal shows after the pieces: none is as wide as it."""
    wrap = WordWrap(width)
    sent = "".join([*(wrap.write(piece) for piece in pieces), wrap.flush()])
    assert "\x1b" not in sent
    lines = sent.split("\n")
    assert all(wcswidth(line) < width for line in lines)
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 99])
def test_words_that_arrive_in_pieces_are_not_broken(size: int) -> None:
    text = "Once upon a time there was a little caterpillar who liked leaves."
    lines = ["Once upon a time there", "was a little", "caterpillar who liked", "leaves."]
    assert shown(24, *(text[i : i + size] for i in range(0, len(text), size))) == lines
    assert fold(text, 24).splitlines() == lines


def test_what_must_not_wait_is_shown_at_once() -> None:
    wrap = WordWrap(40)
    assert wrap.write("caterp") == "caterp"
    assert wrap.write("illar and then an") == "illar and then "
    assert wrap.write("other") == ""
    assert wrap.write(" ") == "another "


def test_wide_characters_take_two_columns_and_need_no_spaces() -> None:
    text = "从前有一只小猫，它喜欢在花园里玩。"
    lines = shown(21, *text)
    assert "".join(lines) == text
    assert max(map(wcswidth, lines)) == 20
    family = "👨\u200d👩\u200d👧"
    assert "".join(shown(21, *(f"word {family} " * 9))).count(family) == 9


def test_a_word_longer_than_a_line_is_cut() -> None:
    assert "".join(shown(22, "a" * 50)) == "a" * 50


def test_spaces_and_lines_of_the_text_stay() -> None:
    assert shown(40, "def f():\n    return 1\n\n- a\tb") == ["def f():", "    return 1", "", "- a     b"]


def test_colours_survive_the_break() -> None:
    wrap = WordWrap(21)
    sent = (
        wrap.write("twenty letters are ") + wrap.write("in", "\033[32m") + wrap.write("side") + wrap.flush()
    )
    assert sent == "twenty letters are \n\033[32min\033[0mside"
