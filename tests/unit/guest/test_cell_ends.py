"""What a context says of an end: anything at all comes in, what goes out is known and fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guest import cell_ends
from casemate.guest.peer import PeerLied
from casemate.wire import bodies

TEXTS = st.text(max_size=300) | st.integers(0, 60_000).map(lambda n: "\u20ac\U0001f600\0x" * (n // 4))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
ENDS = ANYTHING | st.fixed_dictionaries(
    {"kind": st.sampled_from(["ok", "error", "interrupted", "timed-out", "died"]) | ANYTHING},
    optional={name: TEXTS | ANYTHING for name in ("name", "value", "traceback", "state_kept")},
)


@given(found=ENDS)
def test_an_end_is_known_and_fits_or_is_a_lie(found: Any) -> None:
    try:
        end = cell_ends.checked(found)
    except PeerLied:
        return
    assert end["kind"] in ("ok", "error", "interrupted")
    assert len(bodies.dump({"end": end})) <= 45_000
    assert len(bodies.dump({"end": cell_ends.brief(end)})) <= 1000


@given(found=ANYTHING)
def test_a_count_is_one_or_a_lie(found: Any) -> None:
    try:
        counted = cell_ends.count(found)
    except PeerLied:
        return
    assert type(counted) is int
    assert 0 <= counted < 2**53


@given(text=TEXTS, most=st.integers(200, 40_000))
def test_what_is_cut_fits_and_says_so(text: str, most: int) -> None:
    shown = cell_ends.cut(text, most)
    assert len(bodies.dump({"": shown})) <= most + len('{"":}')
    assert shown == text or "characters left out" in shown


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exited with 0"), (3 << 8, "exited with 3"), (9, "killed by signal 9")]
)
def test_a_status_in_words(status: int, words: str) -> None:
    assert cell_ends.reason_of(status) == words
