from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.runtime.text.stops import StopStrings

LETTERS = st.text(alphabet="ab", min_size=1, max_size=4)


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool, int | None]:
    """All text shown, whether a stop string was met, and how many pieces are kept."""
    finder, shown = StopStrings(stops), ""
    for piece in pieces:
        text, hit = finder.push(piece)
        shown += text
        if hit:
            return shown, True, finder.kept
    return shown + finder.flush(), False, None


def first_complete(stops: list[str], text: str) -> str | None:
    """By trying every end: the text before the (longest) stop string that is complete first."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))]
    return None


@given(st.lists(LETTERS, min_size=1, max_size=3), st.lists(st.text(alphabet="abc", max_size=3), max_size=8))
def test_the_stop_string_complete_first_wins_however_the_text_is_cut(
    stops: list[str], pieces: list[str]
) -> None:
    text = "".join(pieces)
    expected = first_complete(stops, text)
    shown, hit, _ = run(stops, pieces)
    assert (shown, hit) == ((text, False) if expected is None else (expected, True))
    assert run(stops, list(text))[:2] == run(stops, [text])[:2] == (shown, hit)


@given(st.lists(LETTERS, min_size=1, max_size=3), st.lists(st.text(alphabet="abc", max_size=3), max_size=8))
def test_no_more_is_held_back_than_could_become_a_stop_string(stops: list[str], pieces: list[str]) -> None:
    finder, shown, seen = StopStrings(stops), "", ""
    for piece in pieces:
        text, hit = finder.push(piece)
        shown, seen = shown + text, seen + piece
        if hit:
            return
        held = seen[len(shown) :]
        assert seen == shown + held
        # What is held is the longest ending that begins a stop string.
        endings = [seen[i:] for i in range(len(seen)) if any(stop.startswith(seen[i:]) for stop in stops)]
        assert held == max(endings, key=len, default="")


@given(st.lists(LETTERS, min_size=1, max_size=2), st.lists(st.text(alphabet="abc", max_size=2), max_size=8))
def test_kept_tokens_are_the_fewest_that_cover_what_is_shown(stops: list[str], pieces: list[str]) -> None:
    shown, hit, kept = run(stops, pieces)
    if hit:
        assert kept is not None
        assert len("".join(pieces[:kept])) >= len(shown)
        assert kept == 0 or len("".join(pieces[: kept - 1])) < len(shown)


def test_a_stop_string_may_span_pieces_and_nothing_of_it_is_shown() -> None:
    finder = StopStrings(["\n\nUser:"])
    assert finder.push("Yes.\n") == ("Yes.", False)
    assert finder.push("\nUs") == ("", False)
    assert finder.push("er: and more") == ("", True)
    assert finder.hit
    assert finder.kept == 1
    with pytest.raises(ValueError, match="already"):
        finder.push("x")


def test_a_beginning_that_goes_on_differently_is_shown_late() -> None:
    finder = StopStrings(["aab"])
    assert finder.push("aa") == ("", False)
    assert finder.push("a") == ("a", False)
    assert finder.push("c") == ("aac", False)
    assert finder.push("aa") == ("", False)
    assert finder.flush() == "aa"


def test_a_stop_in_the_middle_of_a_piece_keeps_that_token() -> None:
    assert run(["STOP"], ["one ", "two STOP three"]) == ("one two ", True, 2)
    assert run(["STOP"], ["one ", "STOP three"]) == ("one ", True, 1)
    assert run(["STOP"], ["STOP"]) == ("", True, 0)
    assert run(["STOP"], ["one", "", "", "STOP"]) == ("one", True, 1)


def test_without_stop_strings_everything_passes() -> None:
    finder = StopStrings([])
    assert finder.push("anything") == ("anything", False)
    assert finder.flush() == ""
    with pytest.raises(ValueError, match="no stop string was met"):
        assert finder.kept


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])
    with pytest.raises(ValueError, match="list"):
        StopStrings("abc")


def test_looking_only_inside_each_piece_would_miss_stop_strings() -> None:
    """The negative control: a search without memory lets a spanning stop string pass."""
    pieces = ["a\n", "\nb"]
    assert not any("\n\n" in piece for piece in pieces)
    assert run(["\n\n"], pieces) == ("a", True, 1)


def test_long_stop_strings_cost_no_more_per_character() -> None:
    finder = StopStrings(["a" * 20_000 + "b"])
    start = time.perf_counter()
    for _ in range(20_000):
        finder.push("a")
    assert time.perf_counter() - start < 5
