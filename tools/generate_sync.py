"""Write ``sdk/_sync`` from ``sdk/_async``: the same code with other names and without its awaits.

    python tools/generate_sync.py            write what differs
    python tools/generate_sync.py --check    exit 1 and name what is stale

Works on Python's own tokens, so strings and comments stay as they are but for docstrings that show code.
``beside.py`` and ``websocket.py`` are written by hand on both sides.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tokenize
from io import StringIO
from pathlib import Path

SDK = Path(__file__).resolve().parents[1] / "src/casemate/sdk"
SOURCE, TARGET = SDK / "_async", SDK / "_sync"
BY_HAND = frozenset({"__init__.py", "beside.py", "websocket.py"})
MARK = "# Generated from {name} by tools/generate_sync.py; change that and run it.\n"
DROPPED = frozenset({"async", "await"})
RENAMED = {
    "_async": "_sync",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aiter_raw": "iter_raw",
    "aread": "read",
    "anext": "next",
    "asynccontextmanager": "contextmanager",
    "enter_async_context": "enter_context",
    "AbstractAsyncContextManager": "AbstractContextManager",
}
PREFIX = re.compile(r"Async(?=[A-Z])")


def converted(source: str, name: str) -> str:
    """The sync twin of *source*, not yet formatted."""
    lines = source.splitlines(keepends=True)
    changes: list[tuple[int, int, int, str]] = []  # line, from, to, what instead
    tokens = [t for t in tokenize.generate_tokens(StringIO(source).readline)]
    for token, following in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        row, column = token.start
        if token.type == tokenize.NAME and token.string in DROPPED:
            changes.append((row, column, following.start[1], ""))
        elif token.type == tokenize.NAME:
            new = RENAMED.get(token.string) or PREFIX.sub("", token.string)
            changes.append((row, column, token.end[1], new))
        elif token.type == tokenize.STRING and token.string.startswith('"""') and row == token.end[0]:
            new = re.sub(r"\b(async|await) ", "", PREFIX.sub("", token.string))
            changes.append((row, column, token.end[1], new))
    for row, start, end, new in reversed(changes):
        line = lines[row - 1]
        lines[row - 1] = line[:start] + new + line[end:]
    return MARK.format(name=f"_async/{name}") + "".join(lines)


def formatted(source: str) -> str:
    """As ruff wants it: names that got shorter sort and wrap in other ways."""
    for arguments in (("check", "--select", "I,RUF100", "--fix-only", "--quiet"), ("format", "--quiet")):
        argv = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET / "new.py"), "-"]
        source = subprocess.run(argv, input=source, capture_output=True, text=True, check=True).stdout
    return source


def generate() -> dict[Path, str]:
    """What ``_sync`` has to hold, by path."""
    sources = sorted(path for path in SOURCE.glob("*.py") if path.name not in BY_HAND)
    return {TARGET / path.name: formatted(converted(path.read_text(), path.name)) for path in sources}


def stale() -> list[Path]:
    """What is missing, differs or has no source any more."""
    wanted = generate()
    differing = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    left_over = [p for p in TARGET.glob("*.py") if p not in wanted and p.name not in BY_HAND]
    return differing + left_over


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        found = stale()
        for path in found:
            print(f"stale: {path.relative_to(SDK)}; run python tools/generate_sync.py", file=sys.stderr)
        return 1 if found else 0
    for path, text in generate().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
