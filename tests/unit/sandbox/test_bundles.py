"""Bundles that a hostile context writes: the same bundle comes out, or a reason, in bounded time and memory."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sandbox import bundles
from casemate.sandbox.bundles import BadBundle, checked

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
GOOD = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["result", "display"]),
        "data": st.fixed_dictionaries(
            {},
            optional={
                "text/plain": st.text(),
                "text/html": st.text(),
                "image/png": st.binary().map(lambda data: base64.b64encode(data).decode()),
                "image/jpeg": st.binary().map(lambda data: base64.encodebytes(data).decode()),
                "image/svg+xml": st.text(),
                "application/json": JSON,
                "application/vnd.casemate.table+json": JSON,
            },
        ),
        "metadata": st.dictionaries(st.text(), JSON, max_size=3),
        "update": st.booleans(),
        "cut": st.dictionaries(st.sampled_from(["text/html", "image/png"]), st.integers(0, 2**40)),
    },
    optional={"display_id": st.text(max_size=100)},
)


def said(**changed: Any) -> bytes:
    return json.dumps({"type": "result", "data": {"text/plain": "x"}} | changed).encode()


@given(GOOD, st.booleans())
def test_a_good_bundle_comes_out_as_it_went_in(body: dict[str, Any], as_ascii: bool) -> None:
    try:
        text = json.dumps(body, ensure_ascii=as_ascii).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only as an escape
        text = json.dumps(body).encode()
    out = checked(text)
    assert out.isascii()
    assert b"\n" not in out
    assert json.loads(out) == body


@given(
    st.binary()
    | GOOD.map(json.dumps)
    .map(str.encode)
    .flatmap(lambda text: st.sampled_from(range(len(text))).map(lambda n: text[:n]))
)
def test_anything_else_is_refused_with_a_reason(body: bytes) -> None:
    with pytest.raises(BadBundle, match=r"."):
        checked(body)


@given(JSON)
def test_any_json_is_a_bundle_or_refused(body: Any) -> None:
    try:
        checked(json.dumps(body).encode())
    except BadBundle:
        return
    assert isinstance(body, dict)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff", "not UTF-8"),
        (b'{"type": "result", "data": {}, "data2": 1}', "a field"),
        (said(type="stdout"), "neither a result"),
        (said(data=[]), "are objects"),
        (said(data={"text/plain": 1}), "not a text"),
        (said(data={"text": "x"}), "not a MIME type"),
        (said(data={"text/plain\n": "x"}), "not a MIME type"),
        (said(data={"image/png": "not base64!"}), "not in base64"),
        (said(data={"image/png": "AAA"}), "not in base64"),
        (said(data={"application/pdf": "A" * 5}), "not in base64"),
        (said(data={f"a/b{n}": "" for n in range(65)}), "more than 64 types"),
        (said(update=1), "neither true nor false"),
        (said(display_id="x" * 2000), "display_id"),
        (said(cut={"text/html": -1}), "cut"),
        (said(cut={"text/html": True}), "cut"),
        (b'{"type": "result", "data": {"application/json": NaN}}', "not JSON"),
        (b'{"type": "result", "data": {"application/json": 1e999}}', "JSON does not have"),
        (b'{"type": "result", "data": {"application/json": ' + b"9" * 5000 + b"}}", "not JSON"),
        (b'{"data": ' + b"[" * 100 + b"]" * 100 + b"}", "levels"),
        (b"[" * 10_000_000, "levels"),
        (b'""' * (bundles.MAX_BYTES // 2 - 50) + b"[" * 100, "values"),
        (said(data={"application/json": [[]] * 200_000}), "lists and objects"),
        (said(data={"application/json": [1] * 1_100_000}), "values"),
        (b'{"type": "result", "data": {"text/plain": "' + b"x" * bundles.MAX_BYTES + b'"}}', "bytes"),
        (said(data={"text/plain": "\u00e9" * (bundles.MAX_BYTES // 4)}), "bytes"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, reason: str) -> None:
    with pytest.raises(BadBundle, match=reason):
        checked(body)


@pytest.mark.parametrize("end", [b"", b"\\"])
def test_a_text_without_an_end_is_looked_at_once(end: bytes) -> None:
    """Not once from each quote in it: a small one, too, would stop all of the daemon for minutes."""
    began = time.thread_time()
    with pytest.raises(BadBundle, match="not JSON"):
        checked(b"[" + b"[]," * 70 + b'"' + b'\\"' * 60_000 + end)
    assert time.thread_time() - began < 1


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    """JSON can say it, but nobody who gets it could write it as UTF-8."""
    body = said(data={"text/plain": "a\ud83d", "application/json": {"\ude00": ["\ud83d\ude00", "\\ud83d"]}})
    data = json.loads(checked(body))["data"]
    assert data == {"text/plain": "a\ufffd", "application/json": {"\ufffd": ["\U0001f600", "\\ud83d"]}}


def test_brackets_in_a_text_are_text() -> None:
    text = '[{",\\"' * 1_000_000
    assert json.loads(checked(said(data={"text/html": text})))["data"]["text/html"] == text


def test_the_costliest_that_is_taken_is_cheap_enough() -> None:
    """Per bundle: a share of the daemon's time and memory that a hostile context can take at once."""
    body = said(data={"application/json": [[0, 1, 2, 3]] * 29_000, "text/html": "x" * 2**24})
    tracemalloc.start()
    began = time.thread_time()
    checked(body)
    took_s = time.thread_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took_s < 3  # under tracemalloc, on a busy machine
    assert peak < 6 * bundles.MAX_BYTES
