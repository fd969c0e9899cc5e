"""How a cell ended, as the agent says it and as users are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from casemate.errors import ProtocolViolation
from casemate.sandbox import parse

MAX_FILES = 1024  # that a guest may say were changed
CHANGES = ("created", "modified", "deleted")


@dataclass(frozen=True, slots=True)
class CellEnd:
    """*kind* and the fields that belong to it: one of each kind is all there is, see ``from_agent``."""

    kind: str
    name: str | None = None
    value: str | None = None
    traceback: str | None = None
    after_s: float | None = None
    state_kept: bool | None = None
    reason: str | None = None

    @classmethod
    def from_agent(cls, body: Mapping[str, Any]) -> Self:
        """Raises ProtocolViolation."""
        kind = parse.text(body, "kind", 64)
        match kind:
            case "ok" | "out-of-memory":
                return cls(kind)
            case "error":
                name, value, traceback = (parse.text(body, field) for field in ("name", "value", "traceback"))
                return cls(kind, name, value, traceback)
            case "interrupted":
                return cls(kind, state_kept=parse.truth(body, "state_kept"))
            case "timed-out":
                after_s = parse.number(body, "after_s")
                return cls(kind, after_s=after_s, state_kept=parse.truth(body, "state_kept"))
            case "context-died":
                return cls(kind, reason=parse.text(body, "reason"))
        raise ProtocolViolation("a cell ended in a way there is not")

    def to_json(self) -> dict[str, Any]:
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Results that were not shown: over a limit in the guest, or none at all in what the context sent."""

    results: int
    result_bytes: int

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(self.results + other.results, self.result_bytes + other.result_bytes)


@dataclass(frozen=True, slots=True)
class FileChange:
    path: str
    change: str


@dataclass(frozen=True, slots=True)
class CellEnded:
    """*files_cut*: how many more files changed than are named; -1 where that is not known."""

    end: CellEnd
    execution_count: int | None
    duration_ms: float
    files_changed: tuple[FileChange, ...]
    files_cut: int
    left_out: LeftOut

    def to_json(self) -> dict[str, Any]:
        return {
            "end": self.end.to_json(),
            "execution_count": self.execution_count,
            "duration_ms": self.duration_ms,
            "files_changed": [{"path": file.path, "change": file.change} for file in self.files_changed],
            "files_cut": self.files_cut,
            "left_out": {"results": self.left_out.results, "result_bytes": self.left_out.result_bytes},
        }


def ended(body: Mapping[str, Any], refused: LeftOut) -> CellEnded:
    """*refused*: what was left out on this side. Raises ProtocolViolation."""
    files = parse.objects(body, "files_changed")
    if len(files) > MAX_FILES:
        raise ProtocolViolation(f"a cell changed {len(files)} files by name")
    left_out = parse.mapping(body, "left_out")
    return CellEnded(
        CellEnd.from_agent(parse.mapping(body, "end")),
        None if body.get("execution_count") is None else parse.whole(body, "execution_count"),
        parse.number(body, "duration_ms"),
        tuple(FileChange(parse.text(file, "path", 4096), parse.one_of(file, "change", CHANGES)) for file in files),
        parse.whole(body, "files_cut", low=-1),
        LeftOut(parse.whole(left_out, "results"), parse.whole(left_out, "result_bytes")) + refused,
    )
