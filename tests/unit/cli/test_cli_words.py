"""What is typed after ``cp``, ``forward`` and ``logs``."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from casemate.cli import _app
from casemate.cli.cp import Place, _place
from casemate.cli.forward import ports_of
from casemate.cli.logs import shown
from casemate.errors import InvalidSpec


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("work:a/b", Place("work", "a/b")),
        ("work:", Place("work", ".")),
        ("work:/etc", Place("work", "/etc")),
        ("work:a:b", Place("work", "a:b")),
        ("a/b", Place(None, "a/b")),
        ("./a:b", Place(None, "./a:b")),
        ("/a:b", Place(None, "/a:b")),
        ("-", Place(None, "-")),
        (":x", Place(None, ":x")),
    ],
)
def test_places(word: str, place: Place) -> None:
    assert _place(word) == place


@pytest.mark.parametrize(
    ("path", "contents"), [(".", True), ("a/.", True), ("/.", True), ("a", False), ("a.", False), (".a", False)]
)
def test_just_what_is_in_it(path: str, contents: bool) -> None:
    assert Place(None, path).contents_only is contents


@pytest.mark.parametrize(("word", "ports"), [("80", (80, 80)), ("8080:80", (8080, 80)), ("0:1", (0, 1))])
def test_ports(word: str, ports: tuple[int, int]) -> None:
    assert ports_of(word) == ports


@pytest.mark.parametrize(
    "word", ["", ":", "a", "80:", ":80", "80:0", "0", "70000", "1:70000", "70000:1", "-1:2", "1:2:3", "٣:1"]
)
def test_no_ports(word: str) -> None:
    with pytest.raises(InvalidSpec):
        ports_of(word)


def test_a_console_does_not_steer_the_terminal() -> None:
    assert shown(b"a\x1b[31m\tb\r\x00\n\x7f\x07") == b"a[31m\tb\n"


@pytest.mark.parametrize("verb", ["run", "exec", "shell"])
def test_the_options_of_a_command_are_its_own(verb: str) -> None:
    group: Any = typer.main.get_command(_app([verb]))
    assert group.commands[verb].context_settings["allow_interspersed_args"] is False
