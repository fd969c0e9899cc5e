"""Notebooks as files have them: any version in, a valid one of 4.5 out; what is none is refused in words."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import v3, v4

from casemate.errors import InvalidSpec, NotSupported, ToolMissing
from casemate.integrations import jupyter
from casemate.integrations.jupyter import document
from casemate.integrations.jupyter.parameters import inject, of_files, of_words, source_of, typed

DEEP = "[" * 100_000


def as_bytes(**body: Any) -> bytes:
    return json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [], **body}).encode()


def code(source: str, **more: Any) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None, **more}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x = 1", "not JSON"),
        (DEEP.encode(), "not a notebook"),
        (as_bytes(metadata={"x": json.loads("[" * 300 + "]" * 300)}), "levels"),
        (b"[" + b"9" * 5000 + b"]", "not a notebook"),
        (b"[1]", "no nbformat"),
        (b'{"a": 1}', "no nbformat"),
        (b'{"nbformat": "4"}', "no nbformat"),
        (b'{"nbformat": 5}', "newer"),
        (b'{"nbformat": -1, "cells": []}', "not a valid notebook"),
        (b'{"nbformat": 4}', "not a valid notebook"),
        (as_bytes(cells=7), "not a valid notebook"),
        (as_bytes(cells=[7]), "not a valid notebook"),
        (as_bytes(cells=[{}]), "not a valid notebook"),
        (as_bytes(metadata=[]), "not a valid notebook"),
        (as_bytes(cells=[{"cell_type": "code"}]), "not a valid notebook"),
        (as_bytes(cells=[code("1", metadata={"tags": [7]})]), "not a valid notebook"),
        (as_bytes(cells=[code("1", metadata={"execution": 7})]), "not a valid notebook"),
        (b'{"nbformat": 3, "worksheets": 7}', "not a valid notebook"),
        (b'{"nbformat": 3, "metadata": {}, "worksheets": [{"cells": [{}]}]}', "not a valid notebook"),
    ],
)
def test_what_is_no_notebook_is_refused_by_name(data: bytes, why: str) -> None:
    with pytest.raises(InvalidSpec, match=r"odd\.ipynb") as refused:
        document.read_notebook(data, "odd.ipynb")
    assert why in str(refused.value)
    assert len(str(refused.value)) < 600


def test_a_file_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "FILE_BYTES", 100)
    with pytest.raises(InvalidSpec, match="clear the outputs"):
        document.read_notebook(as_bytes(cells=[code("x" * 200)]), "nb")


@pytest.mark.parametrize("minor", range(7))
def test_each_version_of_4_becomes_4_5_with_ids(minor: int) -> None:
    same = [code("1", **({"id": "same"} if minor >= 5 else {})) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nb = document.read_notebook(as_bytes(nbformat_minor=minor, cells=[*same, code("2")]), "nb")
    nbformat.validate(nb, version=4, version_minor=5)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in nb.cells}) == 3
    again = document.read_notebook(document.text_of(nb), "nb")
    assert again == nb


def test_a_notebook_of_version_3_is_upgraded() -> None:
    sheet = v3.new_worksheet(
        cells=[v3.new_code_cell(input="x = 1", language="python"), v3.new_text_cell("markdown", source="# t")]
    )
    old = v3.nbjson.JSONWriter().writes(v3.new_notebook(worksheets=[sheet], metadata=v3.new_metadata(name="old")))
    nb = document.read_notebook(old.encode(), "old")
    nbformat.validate(nb, version=4, version_minor=5)
    assert [cell.source for cell in nb.cells if cell.cell_type == "code"] == ["x = 1"]


def test_halves_of_letters_do_not_keep_it_from_being_run_and_written() -> None:
    nb = document.read_notebook(as_bytes(cells=[code("'\ud800 \U0001f600'")]), "nb")
    assert nb.cells[0].source == "'? \U0001f600'"
    assert "'? \U0001f600'".encode() in document.text_of(nb)


def test_what_is_no_kernels_name_is_not_repeated_as_it_is() -> None:
    for name in ("\x1b[2J", "a b", "é", "x" * 101):
        nb = v4.new_notebook(metadata={"kernelspec": {"name": name, "display_name": "x"}})
        with pytest.raises(InvalidSpec, match="no kernel's name") as refused:
            document.language_of(nb)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("metadata", "language"),
    [
        ({}, "python"),
        ({"kernelspec": {"name": "python3", "display_name": "Python 3"}}, "python"),
        ({"kernelspec": {"name": "conda-env-x-py", "display_name": "x", "language": "python"}}, "python"),
        ({"kernelspec": {"name": "casemate", "display_name": "x"}, "language_info": {"name": "python"}}, "python"),
        ({"kernelspec": {"name": "bash", "display_name": "Bash", "language": "bash"}}, "bash"),
        ({"kernelspec": {"name": "javascript", "display_name": "x", "language": "javascript"}}, "javascript"),
        ({"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}, "jupyter:ir"),
        ({"language_info": {"name": "julia"}}, "jupyter:julia"),
    ],
)
def test_the_language_is_the_kernelspecs(metadata: dict[str, Any], language: str) -> None:
    assert document.language_of(v4.new_notebook(metadata=metadata)) == language


def test_a_notebook_that_runs_says_its_language() -> None:
    nb = v4.new_notebook()
    document.describe(nb, "bash", "5.2")
    nbformat.validate(nb)
    assert nb.metadata.kernelspec.name == "bash"
    assert (nb.metadata.language_info.name, nb.metadata.language_info.version) == ("bash", "5.2")
    theirs = {"kernelspec": {"name": "ir", "display_name": "R"}, "language_info": {"name": "R", "version": "4.3"}}
    nb = v4.new_notebook(metadata=theirs)
    document.describe(nb, "jupyter:ir", None)
    assert nb.metadata == theirs


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("7", 7),
        ("-0.5", -0.5),
        ("1e3", 1000.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ('"7"', "7"),
        ("[1, 2]", [1, 2]),
        ('{"a": null}', {"a": None}),
        ("north", "north"),
        ("", ""),
        ("007", "007"),
        ("NaN", "NaN"),
        ("a=b", "a=b"),
        (DEEP, DEEP),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_values_are_json_or_text(word: str, value: Any) -> None:
    found = typed(word)
    assert found == value
    assert type(found) is type(value)


def test_words_are_names_and_values() -> None:
    assert of_words(["a=1", "b=x=y", "a=2"]) == {"a": 2, "b": "x=y"}
    for word in ("a", "=1", ""):
        with pytest.raises(InvalidSpec, match="K=V"):
            of_words([word])


def test_files_of_parameters(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1, "b": [true]}')
    (tmp_path / "b.yaml").write_text("a: 2\nday: 2026-01-02\n")
    assert of_files([tmp_path / "a.json", tmp_path / "b.yaml"]) == {"a": 2, "b": [True], "day": "2026-01-02"}
    for name, text in (("l.json", "[1]"), ("no.json", "a: 1"), ("no.yaml", "{"), ("n.yaml", "1: 2\n? [a]\n: 3")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidSpec, match=name):
            of_files([tmp_path / name])
    with pytest.raises(InvalidSpec, match="No such file"):
        of_files([tmp_path / "none.json"])


def test_python_gets_its_own_words_and_bash_its_own_quotes() -> None:
    values = {"n": 1, "on": True, "none": None, "text": 'it\'s "x"\n$HOME', "more": [1, {"a": False}]}
    names: dict[str, Any] = {}
    exec(source_of(values, "python"), names)
    assert {name: names[name] for name in values} == values
    words = source_of({"n": 1, "on": True, "none": None, "text": "it's $HOME; rm -rf /", "list": ["a b", 2]}, "bash")
    assert words.splitlines()[1:] == [
        "n=1",
        "on=true",
        "none=''",
        "text='it'\"'\"'s $HOME; rm -rf /'",
        "list=('a b' 2)",
    ]
    assert source_of({"a": {"b": None}}, "javascript").splitlines()[1:] == ['a = {"b": null};']


@pytest.mark.parametrize(
    ("language", "parameters"),
    [
        ("python", {"a b": 1}),
        ("python", {"class": 1}),
        ("python", {"x = evil(); y": 1}),
        ("bash", {"a-b": 1}),
        ("bash", {"a;b": 1}),
        ("bash", {"a": {"b": 1}}),
        ("bash", {"a": [[1]]}),
        ("bash", {"a": "\0"}),
        ("javascript", {"a-b": 1}),
    ],
)
def test_a_name_or_a_value_that_a_language_does_not_have_is_refused(language: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="parameter "):
        source_of(parameters, language)


def test_a_language_that_nobody_writes_here_is_said() -> None:
    with pytest.raises(NotSupported, match="jupyter:ir"):
        source_of({"a": 1}, "jupyter:ir")


def test_parameters_go_after_their_cell_and_replace_those_of_an_earlier_run() -> None:
    tagged = v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]})
    nb = v4.new_notebook(cells=[v4.new_code_cell("first"), tagged, v4.new_code_cell("last")])
    assert inject(nb, {"a": 2}, "python")
    assert inject(nb, {"a": 3}, "python")
    assert [cell.source for cell in nb.cells] == ["first", "a = 1", "# Parameters\na = 3", "last"]
    assert nb.cells[2].metadata.tags == ["injected-parameters"]
    nbformat.validate(nb)
    bare = v4.new_notebook(cells=[v4.new_code_cell("first")])
    assert not inject(bare, {"a": 2}, "python")
    assert bare.cells[0].source == "# Parameters\na = 2"


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jupyter, "find_spec", lambda name: None)
    with pytest.raises(ToolMissing, match=r"nbformat .*casemate\[jupyter\]"):
        jupyter.require("nbformat")
