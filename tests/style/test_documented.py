"""What a user can type, set or be told stands in the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main

from casemate import config, errors
from casemate.posture import examine

HERE = Path(__file__).resolve().parents[2]
REFERENCE = HERE / "docs" / "reference.md"
CODES = sorted({kind.code for kind in errors.every_error()})
SETTINGS = [field.name for field in fields(config.Settings)]


@pytest.fixture(scope="module")
def reference() -> str:
    return REFERENCE.read_text()


@pytest.mark.parametrize("code", CODES)
def test_every_error_code(code: str, reference: str) -> None:
    assert f"| `{code}` |" in reference


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting(name: str, reference: str) -> None:
    assert f"| `{name}` |" in reference


def test_no_code_or_setting_that_is_gone(reference: str) -> None:
    documented = set(re.findall(r"^\| `([a-z][a-z_-]*)` \|", reference, re.MULTILINE))
    checks = {check.name for check in examine(config.load()).checks}
    assert documented <= {*CODES, *SETTINGS, *checks}


def test_every_check(reference: str) -> None:
    for check in examine(config.load()).checks:
        assert f"| `{check.name}` |" in reference, check.name


def verbs() -> dict[str, list[str]]:
    """Every verb (``image ls``) with its options, as typer has them."""
    from casemate.cli import app

    found: dict[str, list[str]] = {}

    def walk(name: str, command: object) -> None:
        children = getattr(command, "commands", None)
        if children is not None:
            for child, below in children.items():
                if not below.hidden:
                    walk(f"{name} {child}".strip(), below)
            return
        parameters = getattr(command, "params", [])
        found[name] = [option for p in parameters for option in p.opts if option.startswith("--") and not p.hidden]

    walk("", typer.main.get_command(app))
    return found


def test_every_verb_and_option(reference: str) -> None:
    headed = re.findall(r"^### `casemate ([^`]+)`\n(.*?)(?=^##|\Z)", reference, re.MULTILINE | re.DOTALL)
    known = verbs()
    sections = {_verb_of(title, set(known)): text for title, text in headed}
    for verb, options in known.items():
        assert verb in sections, f"casemate {verb} has no section in docs/reference.md"
        for option in options:
            assert option == "--help" or f"`{option}" in sections[verb], f"casemate {verb} {option}"
    assert set(sections) <= set(known)


def _verb_of(title: str, known: set[str]) -> str:
    """``image ls`` of ``image ls [OPTIONS]``; the first word where no verb is meant."""
    words = title.split()
    return next((name for n in (2, 1) if (name := " ".join(words[:n])) in known), words[0])


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "casemate.cli", *verb.split(), "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before = r"(?:[A-Z_]+=\S+ |(?:export )?\S+=\$\()?"
    example = re.search(rf"^  Example:\n    {before}casemate {verb}", done.stdout, re.MULTILINE)
    assert example, done.stdout
    assert "\x1b" not in done.stdout


def test_every_error_has_its_status(reference: str) -> None:
    """One table of code → status in the API, and the same in the reference."""
    from casemate.api.errors import status_of

    rows = dict(re.findall(r"^\| (\d{3}) \| (.*) \|$", reference, re.MULTILINE))
    for kind in errors.every_error():
        if kind.__module__ == errors.__name__:
            said = rows.get(str(status_of(kind("x"))), "")
            assert f"`{kind.code}`" in said, f"{kind.code} is not in the row of its status in docs/reference.md"


def test_every_scope_is_explained(reference: str) -> None:
    from casemate.api.principal import GRANTABLE

    for scope in GRANTABLE:
        assert f"`{scope}`" in reference, scope


def test_the_readme_begins_with_the_two_commands() -> None:
    text = (HERE / "README.md").read_text()
    commands = re.findall(r"^(make \w+)", text, re.MULTILINE)
    assert commands[:2] == ["make demo", "make test"]


def test_the_changelog_names_this_version() -> None:
    from casemate import __version__

    text = (HERE / "CHANGELOG.md").read_text()
    assert f"## [{__version__}]" in text or "## [Unreleased]" in text


@pytest.mark.parametrize("path", sorted([*HERE.glob("*.md"), *HERE.glob("docs/*.md")]), ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_example_names_its_source() -> None:
    text = (HERE / "examples" / "README.md").read_text()
    assert "Public domain" in text
    assert "Keeling" in text
    rows = (HERE / "examples" / "co2.csv").read_text().splitlines()
    assert len(rows) == 2285
    assert rows[0] == "date,co2"


@pytest.mark.parametrize("page", ["SPECIFICATION.md", "THREATS.md"])
def test_every_test_that_a_promise_names_is_there(page: str) -> None:
    text = (HERE / "docs" / page).read_text()
    named = set(re.findall(r"`((?:unit|vm|faults|firecracker|style|conformance)/[^`]*)`", text))
    assert named
    for test in named:
        path, _, name = test.partition("::")
        assert (HERE / "tests" / path).exists(), test
        assert not name or f"def {name}(" in (HERE / "tests" / path).read_text(), test
