"""An output as it is compared: what no two runs have in common is replaced, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Iterable
from itertools import groupby
from typing import Any

Cell = list[Any]

# What → with what; docs/corpus.md has the same names.
NORMALISATIONS: dict[str, list[tuple[re.Pattern[str], str]]] = {
    "colours": [(re.compile(r"\x1b\[[0-9;]*m"), "")],
    "paths": [
        (re.compile(r"/tmp/ipykernel_\d+/\d+\.py|<cell \d+>"), "<cell>"),
        (re.compile(r"\(\d+\.py, line"), "(<cell>, line"),
        (re.compile(r"/tmp/tmp\w+"), "<folder>"),
        (re.compile(r"/usr/(local/)?lib/python3[.\d]*/(dist-packages/)?"), ""),
    ],
    "addresses": [(re.compile(r"\b0x[0-9a-f]{6,}"), "0x…")],
    "durations": [(re.compile(r"\b\d+(\.\d+)?(e-?\d+)? ?(ns|µs|us|ms|s|sec|secs|seconds?|min)\b(?! \d)"), "<time>")],
    "progress bars": [(re.compile(r"[^\n]*\r(?!\n)"), "")],
}
# A frame as IPython tells of it: of a file, of a cell; and as Python does.
_FRAME = re.compile(
    r"^File (?P<ifile>\S.*?):(?P<iline>\d+), in "
    r"|^\s*Cell In ?\[\d+\], line (?P<icell>\d+)"
    r"|^\s*File \"(?P<file>[^\"\n]+)\", line (?P<line>\d+)",
    re.MULTILINE,
)
_NO_FRAME = re.compile(r"IPython/|<string>:")  # the machinery of magics: we leave it out, IPython what has no file


def normal(outputs: Iterable[dict[str, Any]]) -> Cell:
    """What *outputs* of a cell (nbformat 4) are compared by.

    A picture by its type and size, an error by class, text and the places it went through: a traceback is printed as
    Python does it, not as IPython. Between two results stdout and stderr are each joined: their order among each other
    isn't kept by a plain kernel.
    """
    found: Cell = []
    for is_stream, group in groupby(outputs, lambda output: output["output_type"] == "stream"):
        if is_stream:
            texts: dict[str, str] = {}
            for output in group:
                texts[output["name"]] = texts.get(output["name"], "") + _joined(output["text"])
            found += [["stream", name, normal_text(text)] for name, text in sorted(texts.items())]
        else:
            found += [_one(output) for output in group]
    return found


def normal_text(text: str) -> str:
    for replacements in NORMALISATIONS.values():
        for pattern, by in replacements:
            text = pattern.sub(by, text)
    return text


def frames(traceback: list[str]) -> list[str]:
    """File and line of each frame, of either form."""
    found = [
        f"{frame['ifile'] or frame['file'] or '<cell>'}:{frame['iline'] or frame['line'] or frame['icell']}"
        for frame in _FRAME.finditer(normal_text("\n".join(traceback)))
    ]
    return [place for place in found if not _NO_FRAME.match(place)]


def digest(cell: Cell) -> str:
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:16]


def png_size(data: str) -> tuple[int, int]:
    """Of base64, as notebooks have it."""
    head = base64.b64decode(data)[:24]
    if head[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("no PNG")
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _one(output: dict[str, Any]) -> list[Any]:
    kind = output["output_type"]
    if kind == "error":
        return [kind, output["ename"], normal_text(output["evalue"]), frames(output["traceback"])]
    data = {mime: _shown(mime, value) for mime, value in output["data"].items()}
    return [kind, output.get("execution_count"), data]


def _shown(mime: str, value: Any) -> Any:
    if mime == "image/png":
        return "{}x{}".format(*png_size(_joined(value)))
    return normal_text(_joined(value)) if isinstance(value, str | list) else value


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
