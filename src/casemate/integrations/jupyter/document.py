"""A notebook as a file has it: read from any version of the format, and written as nbformat 4.5."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

from casemate.errors import InvalidSpec

FORMAT = (4, 5)
FILE_BYTES = 256 * 2**20  # more is no notebook that anybody could open
LEVELS = 64  # of lists and objects in one another; nbformat copies them by recursion
SHOWN_CHARS = 300  # of a reason
HINT = "a notebook is a JSON file that Jupyter, VS Code or nbformat has written"
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a surrogate pair; most have their other one
_KERNEL = re.compile(r"[\w.+-]{1,100}", re.ASCII)
_PYTHON = ("python", "ipython", "python2", "python3", "ipython3")
_BASH = ("bash", "sh", "shell")
_JAVASCRIPT = ("javascript", "nodejs", "node")


def read_notebook(data: bytes, name: str) -> Any:
    """The ``NotebookNode``, of version 4.5 and valid: older ones are upgraded, cells get the ids they lack.

    *name* is for errors. Raises InvalidSpec for what is no notebook or of a version nbformat does not know.
    """
    if len(data) > FILE_BYTES:
        raise InvalidSpec(f"{name}: {len(data) >> 20} MiB are no notebook", hint="clear the outputs that it holds")
    found = _parsed(data, name)
    if not isinstance(found, dict) or type(found.get("nbformat")) is not int:
        raise InvalidSpec(f"{name}: JSON, but not a notebook: it has no nbformat", hint=HINT)
    return _upgraded(found, name)


def _parsed(data: bytes, name: str) -> Any:
    try:
        found = json.loads(data.decode("utf-8-sig"))
        if _is_too_deep(found):
            raise ValueError(f"it has over {LEVELS} levels")
        if _HALF.search(data):  # what could be neither sent nor written
            found = json.loads(json.dumps(found, ensure_ascii=False).encode(errors="replace"))
        return found
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{name}: not a notebook: not UTF-8 at byte {error.start}", hint=HINT) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidSpec(f"{name}: not a notebook: not JSON: {error.msg} at {where}", hint=HINT) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists in lists
        raise InvalidSpec(f"{name}: not a notebook: {_short(error)}", hint=HINT) from error


def _is_too_deep(found: Any) -> bool:
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(LEVELS):
        below = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in below for value in values if isinstance(value, dict | list)]
    return bool(level)


def _upgraded(found: dict[str, Any], name: str) -> Any:
    import nbformat
    from nbformat.reader import get_version
    from nbformat.validator import normalize

    major, minor = get_version(found)
    if major > FORMAT[0]:
        raise InvalidSpec(f"{name}: nbformat {major} is newer than what we know, {FORMAT[0]}", hint="save it as 4")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ids that are missing: that is what we are here for
            nb = nbformat.convert(nbformat.versions[major].to_notebook_json(found, minor=minor), FORMAT[0])
            nb = nbformat.v4.upgrade(nb, from_version=FORMAT[0], from_minor=nb.get("nbformat_minor", 0))
            nb["nbformat_minor"] = FORMAT[1]
            _, nb = normalize(nb, *FORMAT)
            nbformat.validate(nb, version=FORMAT[0], version_minor=FORMAT[1])
    except (nbformat.ValidationError, nbformat.NBFormatError) as error:
        raise InvalidSpec(f"{name}: not a valid notebook: {_short(error)}", hint=HINT) from error
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        # what nbformat stumbles over in notebooks that are none
        kind = type(error).__name__
        raise InvalidSpec(f"{name}: not a valid notebook: {kind}: {_short(error)}", hint=HINT) from error
    for mark in ("orig_nbformat", "orig_nbformat_minor"):  # never to be written
        nb["metadata"].pop(mark, None)
    return nb


def _short(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", "") or error).split())
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def text_of(nb: Any) -> bytes:
    """As Jupyter writes it."""
    import nbformat

    text: str = nbformat.v4.writes(nb)
    return (text if text.endswith("\n") else text + "\n").encode(errors="replace")


def language_of(nb: Any) -> str:
    """The language of a context that runs its cells, by its kernelspec: Jupyter kernels of the image for all that
    have no context of their own; Python where nothing is said. Raises InvalidSpec for what is no kernel's name.
    """
    spec, info = (_dict_of(nb["metadata"].get(name)) for name in ("kernelspec", "language_info"))
    kernel = str(spec.get("name") or "")
    spoken = str(spec.get("language") or info.get("name") or kernel or "python").lower()
    if spoken in _PYTHON:
        return "python"
    if spoken in _BASH:
        return "bash"
    if spoken in _JAVASCRIPT:
        return "javascript"
    if not _KERNEL.fullmatch(kernel or spoken):
        raise InvalidSpec(f"{(kernel or spoken)[:SHOWN_CHARS]!a} is no kernel's name", hint="say --language python")
    return f"jupyter:{kernel or spoken}"


def _dict_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def tags_of(cell: Any) -> frozenset[str]:
    tags = cell["metadata"].get("tags")
    return frozenset(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else frozenset()


def clear(nb: Any) -> None:
    """Forget what earlier runs have left in its code cells."""
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            cell["metadata"].pop("execution", None)


def describe(nb: Any, language: str, version: str | None) -> None:
    """Its kernelspec, where it has none, and its language_info, as the kernel would have said them."""
    spoken = language.removeprefix("jupyter:")
    metadata, about = nb["metadata"], _LANGUAGES.get(spoken, {"name": spoken})
    if not _dict_of(metadata.get("kernelspec")):
        names = {"python": ("python3", "Python 3"), "bash": ("bash", "Bash")}
        name, display = names.get(spoken, (spoken, spoken))
        metadata["kernelspec"] = {"name": name, "display_name": display, "language": spoken}
    before = _dict_of(metadata.get("language_info"))
    if language.startswith("jupyter:") and before:
        return  # the kernel knew it better
    metadata["language_info"] = about | ({"version": version} if version else {})


_LANGUAGES: dict[str, dict[str, Any]] = {
    "python": {
        "name": "python",
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
    "bash": {"name": "bash", "codemirror_mode": "shell", "file_extension": ".sh", "mimetype": "text/x-sh"},
    "javascript": {
        "name": "javascript",
        "codemirror_mode": "javascript",
        "file_extension": ".js",
        "mimetype": "text/javascript",
        "pygments_lexer": "javascript",
    },
}
