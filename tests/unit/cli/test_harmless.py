"""A guest's bytes may not steer the terminal they are shown on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli.prompt.harmless import RESET, Stream, harmless

STEERS = [
    "\x1b]0;title\x07",
    "\x1b]52;c;ZXZpbA==\x07",  # writes the clipboard
    "\x1b]52;c;ZXZpbA==\x1b\\",
    "\x1bP+q544e\x1b\\",  # asks for an answer, which would be typed
    "\x1b_Ga=T;AAAA\x1b\\",
    "\x1b[2J",
    "\x1b[6n",
    "\x1b[?1049h",
    "\x1b[1;1H",
    "\x1b[1A",
    "\x1bc",
    "\x1b(0",
    "\x1bM",
    "\x9b2J",
    "\x07",
    "\x08",
    "\x7f",
    "\x0e",
    "\u202e",  # from here on from right to left
]


@pytest.mark.parametrize("steers", STEERS)
@pytest.mark.parametrize("colours", [True, False])
def test_what_steers_is_gone(steers: str, colours: bool) -> None:
    shown = harmless(f"a{steers}b", colours=colours)
    assert shown.replace("\ufffd", "") in ("ab", "a2Jb")
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", shown)


def test_colours_stay_where_they_may() -> None:
    text = "\x1b[1;31mred\x1b[0m \x1b[38;2;1;2;3mmore\x1b[m"
    assert harmless(text, colours=True) == text
    assert harmless(text) == "red more"


def test_text_stays() -> None:
    text = "grüße\t日本語\u3000👩\u200d💻 10\u00a0% \r50%\n"
    assert harmless(text) == text


@given(st.text(alphabet=st.sampled_from("\x1b[]PX^_;?0123456789mHJchn\\\x07\x9b\x9c ab\n")), st.booleans())
def test_whatever_comes_nothing_but_colours_begins_with_escape(text: str, colours: bool) -> None:
    shown = harmless(text, colours=colours)
    rest = re.sub(r"\x1b\[[0-9;:]*m", "", shown) if colours else shown
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", rest)


@given(st.binary(max_size=200), st.lists(st.integers(1, 5), max_size=60), st.booleans())
def test_in_pieces_it_steers_no_more(data: bytes, cuts: list[int], colours: bool) -> None:
    stream, shown, at = Stream(colours=colours), "", 0
    for size in cuts:
        shown += stream.feed(data[at : at + size])
        at += size
    shown += stream.feed(data[at:]) + stream.end()
    rest = re.sub(r"\x1b\[[0-9;:]*m", "", shown)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", rest)


def test_a_colour_in_two_pieces_is_one_and_ends_with_the_cell() -> None:
    stream = Stream(colours=True)
    assert stream.feed(b"a\x1b[3") == "a"
    assert stream.feed(b"1mred \xe2\x82") == "\x1b[31mred "
    assert stream.feed(b"\xac") == "€"
    assert stream.end() == RESET
