"""A PNG as sixels, for terminals that know no other pictures. Pure Python: no decoder in C reads a guest's bytes here.

    ESC P 0;1 q "1;1;W;H  #N;2;R;G;B …  #N<sixels>$#N<sixels>-  …  ESC \\     one sign for a column of six pixels

Source: VT330/VT340 Programmer Reference Manual, vol. 2, chapter 14; PNG: W3C Recommendation, third edition.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

PIXELS = 2**20  # noise of that many takes 5 s, a chart one; what is larger is saved
LEVELS = 6  # of each of red, green and blue
CLEAR = 255  # a pixel that nothing is drawn on
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG's colour types
_LEVEL = bytes((value * (LEVELS - 1) + 127) // 255 for value in range(256))
_RUN = re.compile(rb"(.)\1{3,}", re.DOTALL)


class _Header(NamedTuple):
    width: int
    height: int
    colour_type: int

    @property
    def stride(self) -> int:
        return self.width * CHANNELS[self.colour_type]


def sixels_of(png: bytes) -> bytes | None:
    """None for a PNG that is broken, too large, or of a kind that hardly any program writes (16 bits, interlaced)."""
    try:
        return _encoded(*_decoded(png))
    except (ValueError, IndexError, KeyError, zlib.error):
        return None


def _decoded(png: bytes) -> tuple[int, list[bytes]]:
    """Its width, and for each row the number of each pixel's colour. Raises ValueError and its like."""
    found: dict[bytes, list[bytes]] = {kind: [] for kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT")}
    at = 8
    while at + 12 <= len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        if (parts := found.get(png[at + 4 : at + 8])) is not None:
            parts.append(png[at + 8 : at + 8 + size])
        at += 12 + size
    chunks = {kind: b"".join(parts) for kind, parts in found.items()}
    head = chunks[b"IHDR"]
    width, height = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
    if head[8] != 8 or head[12] != 0 or not 0 < width * height <= PIXELS:
        raise ValueError("not a picture that is shown here")
    header = _Header(width, height, head[9])
    packed = zlib.decompressobj()
    data = packed.decompress(chunks[b"IDAT"], (header.stride + 1) * height)  # and no more, whatever it says
    if len(data) != (header.stride + 1) * height:
        raise ValueError("rows are missing")
    numbers = _Numbers(header, chunks[b"PLTE"], chunks[b"tRNS"])
    return width, [numbers.of(row) for row in _rows(data, header)]


def _rows(data: bytes, header: _Header) -> Iterator[bytes]:
    """Without the filters that rows are packed with."""
    stride, step = header.stride, CHANNELS[header.colour_type]
    before = bytes(stride)
    for at in range(0, len(data), stride + 1):
        row = bytearray(data[at + 1 : at + 1 + stride])
        _UNFILTER[data[at]](row, before, step)
        before = bytes(row)
        yield before


def _none(row: bytearray, before: bytes, step: int) -> None:
    pass


def _sub(row: bytearray, before: bytes, step: int) -> None:
    for at in range(step, len(row)):
        row[at] = (row[at] + row[at - step]) & 255


def _up(row: bytearray, before: bytes, step: int) -> None:
    row[:] = bytes((value + above) & 255 for value, above in zip(row, before, strict=True))


def _average(row: bytearray, before: bytes, step: int) -> None:
    for at, above in enumerate(before):
        left = row[at - step] if at >= step else 0
        row[at] = (row[at] + ((left + above) >> 1)) & 255


def _paeth(row: bytearray, before: bytes, step: int) -> None:
    for at, above in enumerate(before):
        left, corner = (row[at - step], before[at - step]) if at >= step else (0, 0)
        by_left, by_above, by_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
        nearest = left if by_left <= by_above and by_left <= by_corner else above if by_above <= by_corner else corner
        row[at] = (row[at] + nearest) & 255


_UNFILTER = {0: _none, 1: _sub, 2: _up, 3: _average, 4: _paeth}


class _Numbers:
    """From a row's bytes to a number of a colour for each pixel: LEVELS³ of them, or CLEAR."""

    def __init__(self, header: _Header, palette: bytes, alphas: bytes) -> None:
        self._kind = header.colour_type
        entries = [palette[at : at + 3] for at in range(0, len(palette) - 2, 3)]
        by_index = [
            _number(*entry) if (alphas[n : n + 1] or b"\xff")[0] >= 128 else CLEAR for n, entry in enumerate(entries)
        ]
        self._by_index = bytes((by_index + [CLEAR] * 256)[:256])
        self._by_grey = bytes(_number(value, value, value) for value in range(256))

    def of(self, row: bytes) -> bytes:
        match self._kind:
            case 3:
                return row.translate(self._by_index)
            case 0 | 4:
                numbers = row[:: 1 + (self._kind == 4)].translate(self._by_grey)
            case _:
                step = CHANNELS[self._kind]
                red, green, blue = (row[n::step].translate(_LEVEL) for n in range(3))
                numbers = bytes(36 * r + 6 * g + b for r, g, b in zip(red, green, blue, strict=True))
        if self._kind not in (4, 6):
            return numbers
        alpha = row[CHANNELS[self._kind] - 1 :: CHANNELS[self._kind]]
        if min(alpha) >= 128:
            return numbers
        return bytes(n if a >= 128 else CLEAR for n, a in zip(numbers, alpha, strict=True))


def _number(red: int, green: int, blue: int) -> int:
    return 36 * _LEVEL[red] + 6 * _LEVEL[green] + _LEVEL[blue]


def _encoded(width: int, rows: list[bytes]) -> bytes:
    used = sorted(set().union(*rows) - {CLEAR})
    parts = [b'\x1bP0;1q"1;1;%d;%d' % (width, len(rows))]
    for number in used:
        percents = ((number // 36) * 20, (number // 6 % 6) * 20, (number % 6) * 20)
        parts.append(b"#%d;2;%d;%d;%d" % (number, *percents))
    for at in range(0, len(rows), 6):
        parts.append(_band(rows[at : at + 6]) + b"-")
    return b"".join([*parts, b"\x1b\\"])


def _band(rows: list[bytes]) -> bytes:
    """Six rows, colour by colour over one another."""
    lines = []
    for number in sorted(set().union(*rows) - {CLEAR}):
        picked = bytes(number) + b"\x01" + bytes(255 - number)
        bits = sum(
            int.from_bytes(row.translate(picked), "big") << n for n, row in enumerate(rows)
        )  # a byte a column, a bit a row
        signs = (bits + int.from_bytes(b"\x3f" * len(rows[0]), "big")).to_bytes(len(rows[0]), "big")
        lines.append(b"#%d" % number + _RUN.sub(lambda run: b"!%d%s" % (len(run[0]), run[1]), signs))
    return b"$".join(lines)
