"""Sixels, read back as a terminal reads them."""

from __future__ import annotations

import re
import struct
import zlib

import pytest

from casemate.cli.prompt import sixel
from casemate.cli.prompt.pictures import PNG

WIDTH, HEIGHT = 7, 15  # two bands and a half
Pixel = tuple[int, int, int] | None


def picture() -> list[list[Pixel]]:
    """Of colours that sixels have here, with a clear pixel in each row."""
    return [
        [None if x == y % WIDTH else ((x * 51) % 306, (y * 51) % 306, 255 if x > 3 else 0) for x in range(WIDTH)]
        for y in range(HEIGHT)
    ]


def nearest(left: int, above: int, corner: int) -> int:
    estimate = left + above - corner
    return min((left, above, corner), key=lambda value: abs(estimate - value))  # the first of equals


def filtered(kind: int, row: bytes, before: bytes, step: int) -> bytes:
    out = bytearray([kind])
    for at, value in enumerate(row):
        left, corner = (row[at - step], before[at - step]) if at >= step else (0, 0)
        above = before[at]
        guess = (0, left, above, (left + above) // 2, nearest(left, above, corner))[kind]
        out.append((value - guess) & 255)
    return bytes(out)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: list[bytes], colour_type: int, filters: tuple[int, ...], *, extra: bytes = b"", **head: int) -> bytes:
    step = sixel.CHANNELS[colour_type]
    width, height = head.get("width", len(rows[0]) // step), head.get("height", len(rows))
    before, packed = bytes(len(rows[0])), b""
    for at, row in enumerate(rows):
        packed += filtered(filters[at % len(filters)], row, before, step)
        before = row
    fields = (width, height, head.get("depth", 8), colour_type, 0, 0, head.get("interlaced", 0))
    data = zlib.compress(packed)
    return (
        PNG
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))
        + extra
        + chunk(b"IDAT", data[:9])
        + chunk(b"IDAT", data[9:])
        + chunk(b"IEND", b"")
    )


def rgba(rows: list[list[Pixel]]) -> list[bytes]:
    return [b"".join(bytes((*pixel, 255)) if pixel else b"\x09\x09\x09\x00" for pixel in row) for row in rows]


def seen(sixels: bytes | None) -> list[list[Pixel]]:
    """What a terminal makes of it."""
    assert sixels is not None
    head = re.match(rb'\x1bP0;1q"1;1;(\d+);(\d+)', sixels)
    assert head
    assert sixels.endswith(b"\x1b\\")
    width, height = int(head[1]), int(head[2])
    rows: list[list[Pixel]] = [[None] * width for _ in range(height)]
    colours: dict[int, tuple[int, int, int]] = {}
    x = y = now = 0
    for found in re.finditer(rb"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)(.)|(.)", sixels[head.end() : -2], re.DOTALL):
        if found[1] is not None:
            now = int(found[1])
            if found[2] is not None:
                colours[now] = tuple(int(value) * 255 // 100 for value in found.groups()[1:4])  # type: ignore[assignment]
            continue
        count, sign = (int(found[5]), found[6]) if found[5] else (1, found[7])
        if sign == b"$":
            x = 0
        elif sign == b"-":
            x, y = 0, y + 6
        else:
            for at in range(x, x + count):
                for n in range(6):
                    if (sign[0] - 63) >> n & 1:
                        rows[y + n][at] = colours[now]
            x += count
    return rows


@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 2, 0, 3, 1)])
def test_with_every_filter_each_pixel_has_its_colour(filters: tuple[int, ...]) -> None:
    assert seen(sixel.sixels_of(png(rgba(picture()), 6, filters))) == picture()


def test_other_kinds_of_pixels() -> None:
    grey = [bytes((0, 51, 255)), bytes((102, 102, 102))]
    shades: list[list[Pixel]] = [[(v, v, v) for v in row] for row in grey]
    assert seen(sixel.sixels_of(png(grey, 0, (0,)))) == shades
    with_alpha = [b"".join(bytes((v, 255)) for v in row) for row in grey]
    assert seen(sixel.sixels_of(png(with_alpha, 4, (1,)))) == shades
    colours = [bytes((255, 0, 51) * 4), bytes((0, 0, 0) * 4)]
    assert seen(sixel.sixels_of(png(colours, 2, (4,)))) == [[(255, 0, 51)] * 4, [(0, 0, 0)] * 4]
    extra = chunk(b"PLTE", bytes((0, 0, 0, 255, 102, 0))) + chunk(b"tRNS", b"\x00")
    assert seen(sixel.sixels_of(png([b"\x00\x01\x09"], 3, (0,), extra=extra))) == [[None, (255, 102, 0), None]]


def test_a_long_row_is_short() -> None:
    found = sixel.sixels_of(png([bytes(1000)] * 6, 0, (0,)))
    assert found is not None
    assert b"#0!1000~" in found
    assert len(found) < 60


@pytest.mark.parametrize(
    "head",
    [
        {"width": 10**6, "height": 10**6},
        {"width": 0},
        {"height": 0},
        {"height": HEIGHT + 1},
        {"depth": 16},
        {"depth": 1},
        {"interlaced": 1},
    ],
)
def test_what_it_says_of_itself_is_held_against_it(head: dict[str, int]) -> None:
    assert sixel.sixels_of(png(rgba(picture()), 6, (0,), **head)) is None


def test_a_small_file_does_not_become_a_large_memory() -> None:
    bomb = png([bytes(4)], 6, (0,))[:33] + chunk(b"IDAT", zlib.compress(bytes(50_000_000)))
    assert seen(sixel.sixels_of(bomb)) == [[None]]


def test_broken_ones_are_none() -> None:
    whole = png(rgba(picture()), 6, (0,))
    for at in range(len(whole) - 40):  # without the sums at its end it still is whole
        assert sixel.sixels_of(whole[:at]) is None
    for at in range(8, len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        sixel.sixels_of(bytes(broken))  # nothing is raised
