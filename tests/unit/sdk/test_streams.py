"""Lines out of pieces, output within bounds, and the generated twin."""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError
from casemate.sdk.streams import MAX_LINE_BYTES, Kept, LineSplitter

EVENTS = st.lists(
    st.one_of(
        st.builds(
            lambda stream, offset, data: {"event": stream, "offset": offset, "data": base64.b64encode(data).decode()},
            st.sampled_from(["stdout", "stderr"]),
            st.integers(0, 2**62),
            st.binary(max_size=200),
        ),
        st.fixed_dictionaries({"event": st.sampled_from(["end", "keepalive", "gap"]), "text": st.text(max_size=20)}),
    ),
    max_size=12,
)


@given(EVENTS, st.lists(st.integers(1, 60), max_size=40), st.booleans())
def test_any_pieces_give_the_same_events(events: list[dict[str, object]], cuts: list[int], compact: bool) -> None:
    separators = (",", ":") if compact else None
    text = b"".join(json.dumps(event, separators=separators).encode() + b"\n" for event in events)
    splitter, found, at = LineSplitter(), [], 0
    for size in [*cuts, len(text)]:
        found += list(splitter.feed(text[at : at + size]))
        at += size
    wanted = [event for event in events if event["event"] != "keepalive"]
    assert [{**event, "data": None} for event in found] == [{**event, "data": None} for event in wanted]
    for got, sent in zip(found, wanted, strict=True):
        if "data" in sent:
            assert binascii.a2b_base64(got["data"]) == base64.b64decode(str(sent["data"]))
    assert not splitter.torn


def test_a_line_without_end_is_refused() -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(b"x" * MAX_LINE_BYTES)) == []
    with pytest.raises(CasemateError, match="too long"):
        list(splitter.feed(b"x"))
    with pytest.raises(ValueError, match="not an object"):
        list(LineSplitter().feed(b"[1]\n"))


@given(st.lists(st.binary(max_size=40)), st.integers(0, 60))
def test_what_is_kept_are_the_ends(pieces: list[bytes], limit: int) -> None:
    kept, whole = Kept(limit), b"".join(pieces)
    for piece in pieces:
        kept.add(piece)
    if len(whole) <= limit:
        assert (kept.value(), kept.dropped_bytes) == (whole, 0)
    else:
        head, tail = limit - limit // 2, limit // 2
        assert kept.value() == whole[:head] + whole[len(whole) - tail :]
        assert kept.dropped_bytes == len(whole) - limit


def test_the_sync_side_is_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, "tools/generate_sync.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_sync_side_costs_no_event_loop() -> None:
    code = "import sys; import casemate.sdk; casemate.sdk.Sandbox; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unwanted = {"asyncio", "rich", "click", "pygments", "httpx._main", "typer", "pydantic", "tomllib", "subprocess"}
    assert not unwanted & set(done.stdout.split())
