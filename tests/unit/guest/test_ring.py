"""A ring gives back exactly the bytes that went in, at the offsets they had."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guest.ring import RING_BYTES, Ring


def read(ring: Ring, offset: int) -> bytes:
    found = b""
    while offset < ring.end:
        piece = bytes(ring.piece_at(offset))
        found += piece
        offset += len(piece)
    return found


@given(st.lists(st.binary(min_size=1, max_size=9000), max_size=20), st.data())
def test_from_any_offset_to_the_end(pieces: list[bytes], data: st.DataObject) -> None:
    ring, whole = Ring(), b"".join(pieces)
    for piece in pieces:
        ring.append(piece)
    assert (ring.start, ring.end) == (0, len(whole))
    offset = data.draw(st.integers(0, len(whole)))
    assert read(ring, offset) == whole[offset:]


def test_the_oldest_go_but_not_what_somebody_needs() -> None:
    ring = Ring()
    for number in range(40):
        ring.append(bytes([number]) * 65_536)
        ring.trim(needed_from=3 * 65_536)
    assert ring.start == 3 * 65_536
    assert ring.is_full()
    ring.trim(needed_from=ring.end)
    assert RING_BYTES - 65_536 <= ring.end - ring.start <= RING_BYTES
    assert read(ring, ring.start)[:1] == bytes([24])
    with pytest.raises(IndexError):
        ring.piece_at(0)


def test_single_bytes_are_joined() -> None:
    ring = Ring()
    for _ in range(10_000):
        ring.append(b"x")
    assert len(ring._pieces) < 5
