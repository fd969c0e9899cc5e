"""Parameters of a notebook, by papermill's convention: a cell of ours after the one that is tagged ``parameters``."""

from __future__ import annotations

import json
import keyword
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from casemate.errors import InvalidSpec, NotSupported, ToolMissing
from casemate.integrations.jupyter.document import tags_of

TAG, INJECTED = "parameters", "injected-parameters"
_PYTHON_WORDS = {"True": True, "False": False, "None": None}
_BASH_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_JAVASCRIPT_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


def of_words(words: Sequence[str]) -> dict[str, Any]:
    """``K=V``; of several for one K the last. Raises InvalidSpec."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InvalidSpec(f"--param {word}: not K=V", hint="as --param alpha=0.5")
        found[name] = typed(value)
    return found


def of_files(paths: Sequence[Path]) -> dict[str, Any]:
    """The objects in *paths*, JSON or YAML; of several for one name the last. Raises InvalidSpec, ToolMissing."""
    found: dict[str, Any] = {}
    for path in paths:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSpec(f"{path}: {getattr(error, 'strerror', None) or 'not text'}") from error
        body = _loaded(text, path)
        if not isinstance(body, dict) or not all(isinstance(name, str) for name in body):
            raise InvalidSpec(f"{path}: not an object of parameters", hint='as {"alpha": 0.5}')
        found |= body
    return found


def _loaded(text: str, path: Path) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        if path.suffix not in (".yaml", ".yml"):
            raise InvalidSpec(f"{path}: not JSON: {error}", hint="YAML is in files that end in .yaml") from error
    if find_spec("yaml") is None:
        raise ToolMissing("the Python package pyyaml is not installed", hint="pip install pyyaml")
    import yaml

    try:
        return json.loads(json.dumps(yaml.safe_load(text), default=str))  # dates are text here
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidSpec(f"{path}: not YAML: {' '.join(str(error).split())}") from error


def typed(word: str) -> Any:
    """Numbers, true, false, null and all other JSON, also Python's True, False, None; what is none of these is text."""
    if word in _PYTHON_WORDS:
        return _PYTHON_WORDS[word]
    try:
        return json.loads(word, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return word


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def inject(nb: Any, parameters: Mapping[str, Any], language: str) -> bool:
    """Put the cell that sets them where it takes effect; an earlier one of its kind goes.

    False: the notebook has no cell tagged ``parameters``, so it stands first. Raises InvalidSpec for names and values
    that *language* does not have, NotSupported for a language we can't write.
    """
    from nbformat import v4

    code = source_of(parameters, language)
    cells = nb["cells"]
    cells[:] = [cell for cell in cells if INJECTED not in tags_of(cell)]
    at = next((n + 1 for n, cell in enumerate(cells) if TAG in tags_of(cell)), 0)
    cells.insert(at, v4.new_code_cell(code, metadata={"tags": [INJECTED]}))
    return at > 0


def source_of(parameters: Mapping[str, Any], language: str) -> str:
    write = _WRITERS.get(language)
    if write is None:
        known = ", ".join(sorted(_WRITERS))
        raise NotSupported(
            f"parameters for a notebook in {language}", hint=f"they can be given to notebooks in {known}"
        )
    mark = "//" if language == "javascript" else "#"
    return "\n".join([f"{mark} Parameters", *(write(name, value) for name, value in parameters.items())])


def _python(name: str, value: Any) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InvalidSpec(f"parameter {name}: not a name in Python")
    return f"{name} = {value!r}"


def _bash(name: str, value: Any) -> str:
    if not _BASH_NAME.fullmatch(name):
        raise InvalidSpec(f"parameter {name}: not a name in bash")
    if isinstance(value, list):
        return f"{name}=({' '.join(_word(name, item) for item in value)})"
    return f"{name}={_word(name, value)}"


def _word(name: str, value: Any) -> str:
    if isinstance(value, dict | list):
        raise InvalidSpec(f"parameter {name}: bash has texts and flat lists only")
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    if "\0" in text:
        raise InvalidSpec(f"parameter {name}: bash can't hold a null byte")
    return shlex.quote(text)


def _javascript(name: str, value: Any) -> str:
    if not _JAVASCRIPT_NAME.fullmatch(name):
        raise InvalidSpec(f"parameter {name}: not a name in JavaScript")
    return f"{name} = {json.dumps(value)};"


_WRITERS: dict[str, Callable[[str, Any], str]] = {"python": _python, "bash": _bash, "javascript": _javascript}
