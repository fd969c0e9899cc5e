"""A picture of a guest's: into a file with a name of ours, and onto a terminal that says it can show one."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from casemate.cli.prompt.sixel import sixels_of

SHOWN_BYTES = 8 * 2**20
SHOWN_PIXELS = 2**25  # a terminal unpacks all of them
KITTY_CHUNK = 4096
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
KINDS = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg", "application/pdf": "pdf"}
TRIES = 10_000
VARIABLE = "CASEMATE_PICTURES"
PROTOCOLS = ("kitty", "iterm2", "sixel")


def protocol_of(env: Mapping[str, str]) -> str | None:
    """How this terminal shows pictures: as CASEMATE_PICTURES says, else by what it says of itself.

    A multiplexer between us would not pass them on. None: they are saved.
    """
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "")
    if asked := env.get(VARIABLE):
        return asked if asked in PROTOCOLS else None
    if env.get("TMUX") or env.get("STY") or term.startswith(("screen", "tmux", "dumb")):
        return None
    if env.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty") or env.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if term.startswith(("foot", "mlterm", "contour", "yaft")) or "sixel" in term:
        return "sixel"
    return None


def drawn(protocol: str, data: bytes) -> bytes | None:
    """The sequence that shows it; None where it is not what it says, or too large."""
    if len(data) > SHOWN_BYTES:
        return None
    if protocol == "sixel":
        return sixels_of(data) if _is_png(data) else None
    if protocol == "kitty":
        return b"".join(_kitty(data)) if _is_png(data) else None
    if _is_png(data) or data.startswith(JPEG):
        encoded = base64.b64encode(data)
        return b"\x1b]1337;File=inline=1;size=%d;preserveAspectRatio=1:%s\x07" % (len(data), encoded)
    return None


def _is_png(data: bytes) -> bool:
    if not data.startswith(PNG) or data[12:16] != b"IHDR" or len(data) < 24:
        return False
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return 0 < width * height <= SHOWN_PIXELS


def _kitty(data: bytes) -> Iterator[bytes]:
    encoded = base64.b64encode(data)
    for at in range(0, len(encoded), KITTY_CHUNK):
        more = at + KITTY_CHUNK < len(encoded)
        head = b"a=T,f=100," if at == 0 else b""
        yield b"\x1b_G%sm=%d;%s\x1b\\" % (head, more, encoded[at : at + KITTY_CHUNK])


class Folder:
    """Where pictures go: the folder that was asked for, or a new one, made for the first of them."""

    def __init__(self, chosen: Path | None) -> None:
        self._chosen = chosen
        self._number = 0

    def save(self, data: bytes, ending: str) -> Path:
        """A new file; no file that is there is touched. Raises OSError."""
        if self._chosen is None:
            self._chosen = Path(tempfile.mkdtemp(prefix="casemate-repl-"))
        self._chosen.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            self._number += 1
            path = self._chosen / f"picture-{self._number}.{ending}"
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except FileExistsError:
                continue
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            return path
        raise FileExistsError(17, "there are too many pictures", str(self._chosen))
