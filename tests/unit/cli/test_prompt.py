"""Cells typed and piped, pictures, what the guest would complete, and what is remembered."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from tests.fair import fair_clock

from casemate.cli.prompt import pictures
from casemate.cli.prompt.cells import complete, piped
from casemate.cli.prompt.keyboard import Keyboard, history_path, offered, shorten
from casemate.cli.prompt.showing import Shown, wants_colours
from casemate.sdk.code import Execution, Raised, error_of
from casemate.sdk.results import Logs


def png(width: int, height: int) -> bytes:
    return pictures.PNG + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x02\x00\x00\x00"


@pytest.mark.parametrize(
    ("text", "language", "whole"),
    [
        ("1 + 1", "python", True),
        ("for x in y:", "python", False),
        ("for x in y:\n    f(x)", "python", False),
        ("for x in y:\n    f(x)\n", "python", True),
        ("f(1,", "python", False),
        ("'''a", "python", False),
        ("await f()", "python", True),
        ("!ls", "python", True),
        ("%%time", "python", False),
        ("%%time\nf()\n", "python", True),
        ("x = = 1", "python", True),
        ("\x00", "python", True),
        ("(" * 100_000, "python", True),
        ("f() {", "bash", False),
        ("f() {\n echo\n}", "bash", True),
        ("echo a \\", "bash", False),
        ("echo '('", "bash", True),
        ("[1, 2].map(x => {", "javascript", False),
        ("[1, 2].map(x => { return x })", "javascript", True),
        ("whatever(", "jupyter:no-such-language", True),
    ],
)
def test_where_a_cell_ends(text: str, language: str, whole: bool) -> None:
    assert complete(text, language) is whole


def test_cells_in_a_text() -> None:
    text = "a = 1\nb = 2\n# %% two\nprint(a)\n#%%\n\n# %%\n// %%\nlast"
    assert list(piped(io.StringIO(text))) == ["a = 1\nb = 2\n", "print(a)\n", "last"]
    assert list(piped(io.StringIO(""))) == []


@pytest.mark.parametrize(
    ("env", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "mintty"}, "iterm2"),
        ({"TERM": "foot-extra"}, "sixel"),
        ({"TERM": "mlterm"}, "sixel"),
        ({"TERM": "dumb", "TERM_PROGRAM": "WezTerm"}, None),
        ({"TERM": "screen", "TMUX": "/tmp/x", "CASEMATE_PICTURES": "kitty"}, "kitty"),
        ({"TERM": "xterm-kitty", "CASEMATE_PICTURES": "none"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, None),
        ({}, None),
    ],
)
def test_a_terminal_says_what_it_can(env: dict[str, str], protocol: str | None) -> None:
    assert pictures.protocol_of(env) == protocol


def test_a_picture_on_a_terminal() -> None:
    data = png(10, 10) + os.urandom(20_000)
    for protocol in ("kitty", "iterm2"):
        sequence = pictures.drawn(protocol, data)
        assert sequence is not None
        body = (
            sequence.removeprefix(b"\x1b").replace(b"\x1b\\\x1b_G", b"").removesuffix(b"\x1b\\").removesuffix(b"\x07")
        )
        assert body.isascii()
        assert not [sign for sign in body if sign < 0x20]


@pytest.mark.parametrize("data", [b"", b"GIF89a", pictures.PNG, png(2**16, 2**16), png(0, 5), b"\x1b[2J" + png(1, 1)])
def test_what_is_no_picture_is_not_shown(data: bytes) -> None:
    assert pictures.drawn("kitty", data) is None
    assert pictures.drawn("iterm2", data) is None
    assert pictures.drawn("sixel", data) is None


@pytest.mark.parametrize(
    ("env", "on_terminal", "off"),
    [
        ({}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ({"FORCE_COLOR": "0"}, False, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_colours_are_as_the_environment_has_them(env: dict[str, str], on_terminal: bool, off: bool) -> None:
    assert (wants_colours(env, on_terminal=True), wants_colours(env, on_terminal=False)) == (on_terminal, off)


def test_a_traceback_is_coloured_where_that_is_forced(capfd: pytest.CaptureFixture[str]) -> None:
    trace = 'Traceback (most recent call last):\n  File "<cell 1>", line 1, in <module>\nValueError: \x1b[2Jno'
    end = Raised("ValueError", "no", trace)
    ended = Execution((), Logs("", ""), error_of(end), end, 1, 1.0, (), "c", "default", 0, 0)
    Shown(None, {"FORCE_COLOR": "1"}).end(ended)
    coloured = capfd.readouterr().err
    assert "\x1b[" in coloured
    assert "\x1b[2J" not in coloured
    Shown(None, {}).end(ended)
    assert capfd.readouterr().err == f"{trace}\n"  # through a pipe as it is


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "picture-1.png").write_text("mine")
    (tmp_path / "picture-2.png").symlink_to(tmp_path / "elsewhere")
    path = pictures.Folder(tmp_path).save(b"data", "png")
    assert path.name == "picture-3.png"
    assert (tmp_path / "picture-1.png").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_the_guest_offers_text_only() -> None:
    found = [c.text for c in offered("os.pa", 5, ["path", "pa\x1b[2J", "pa\nrm", "", "pardir"], 3, 5)]
    assert found == ["path", "pardir"]
    assert [c.start_position for c in offered("os.pa", 5, ["path"], 3, 5)] == [-2]
    for start in (-1, 6, 10**9):
        assert not list(offered("os.pa", 5, ["path"], start, 5))


def test_a_history_is_its_owners_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert typed("1\r", history=True) == "1"
    path = history_path()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert "+1\n" in path.read_text()
    with path.open("a") as file:
        for n in range(1000):
            file.write(f"\n# 2026-01-01 00:00:00.{n:06}\n+cell {n}\n")
    shorten(path, 2000)
    assert path.stat().st_size <= 1000
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("\n# 2026")
    assert "+cell 999\n" in path.read_text()


def typed(keys: str, *, history: bool = False, language: str = "python", ask: Any = None) -> str:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        return Keyboard(language, ask or (lambda text, cursor: ([], 0, 0)), history=history).read(1)


def test_enter_runs_what_is_complete() -> None:
    assert typed("1 + 1\r") == "1 + 1"
    assert typed("for x in y:\rf(x)\r\r").rstrip() == "for x in y:\n    f(x)"
    assert typed("f(1,\r2)\r") == "f(1,\n2)"
    assert typed("a = 1\x1b\rb = 2\r") == "a = 1\nb = 2"  # Alt-Enter


def test_ctrl_d_leaves_and_ctrl_c_does_not() -> None:
    with pytest.raises(EOFError):
        typed("\x04")
    with pytest.raises(KeyboardInterrupt):
        typed("abc\x03")


def test_tab_completes_and_a_dead_guest_holds_nobody_up() -> None:
    def ask(text: str, cursor: int) -> tuple[list[str], int, int]:
        return (["path_like"], 3, cursor)

    import threading

    never = threading.Event()

    def dead(text: str, cursor: int) -> tuple[list[str], int, int]:
        never.wait(30)
        return ([], 0, 0)

    began = fair_clock()
    assert typed("1\t + 1\r", ask=dead) == "1 + 1"
    assert fair_clock() - began < 5
    never.set()
