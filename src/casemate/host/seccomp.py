"""System calls a program may make, as a list, and the list as a filter for the kernel. Pure.

The lists are data beside this file: ``filters/<name>.txt``, a call per line: number, name and, where not every
call of that name is meant, conditions on its arguments that must all hold:

    56 clone  0 & 0x10000 = 0x10000  0 & 0x7e020000 = 0    (argument 0 masked; a thread, no namespace)
    157 prctl  0 = 15|22                                   (argument 0 is one of these)
    425 io_uring_setup  refused 38                         (answered with that errno)

What is not listed kills the whole process, also with other conditions: a VMM that does what QEMU never did is no
longer QEMU, and is not to be asked to go on. In a list with the line ``otherwise allow`` what is not listed is allowed;
other conditions kill there, too. Both halves of an argument are compared.
Source: the kernel's userspace-api/seccomp_filter, linux/filter.h, linux/seccomp.h, linux/audit.h
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "filters"
AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000  # the same kernel's other table of calls
KILL_PROCESS, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
LOAD, JUMP, RETURN, AND = 0x20, 0x05, 0x06, 0x54  # BPF_LD|W|ABS, BPF_JMP|JA, BPF_RET|K, BPF_ALU|AND|K
EQUAL, AT_LEAST = 0x15, 0x35  # BPF_JMP|JEQ|K, BPF_JMP|JGE|K
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
OTHERWISE_ALLOW = "otherwise allow"
_LINE = re.compile(r"(?P<number>\d+) (?P<name>[a-z0-9_]+)(?:\s+refused (?P<errno>\d{1,3}))?(?P<conditions>.*)")
_CONDITION = re.compile(r"\s+([0-5])(?: & (0x[0-9a-f]+))? = ((?:0x[0-9a-f]+|\d+)(?:\|(?:0x[0-9a-f]+|\d+))*)")


@dataclass(frozen=True, slots=True)
class Condition:
    """Argument *index*, masked, is one of *values*."""

    index: int
    mask: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    number: int
    name: str
    conditions: tuple[Condition, ...] = ()
    refused: int | None = None  # the errno it is answered with


def parse(text: str) -> list[Call]:
    """A list of calls. Raises ValueError, with the line, for what is not understood."""
    calls: dict[int, Call] = {}
    for line in text.splitlines():
        line = line.partition("#")[0].rstrip()
        if not line or line == OTHERWISE_ALLOW:
            continue
        found = _LINE.fullmatch(line)
        rest = found["conditions"] if found else ""
        if found is None or _CONDITION.sub("", rest) or (number := int(found["number"])) in calls:
            raise ValueError(f"not a system call, or listed before: {line!r}")
        refused = int(found["errno"]) if found["errno"] else None
        calls[number] = Call(number, found["name"], tuple(map(_condition, _CONDITION.findall(rest))), refused)
    return list(calls.values())


def _condition(words: tuple[str, str, str]) -> Condition:
    index, mask, values = words
    return Condition(int(index), int(mask or "0xffffffffffffffff", 16), tuple(int(v, 0) for v in values.split("|")))


def assemble(calls: Iterable[Call], otherwise: int = KILL_PROCESS) -> bytes:
    """The filter as bubblewrap and seccomp(2) take it: an array of struct sock_filter."""
    code = [
        _op(LOAD, ARCH_AT),
        _op(EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        _op(RETURN, KILL_PROCESS),
        _op(LOAD, NUMBER_AT),
        _op(AT_LEAST, X32_BIT, 0, 1),
        _op(RETURN, KILL_PROCESS),
    ]
    for call in calls:
        verdict = ALLOW if call.refused is None else ERRNO | call.refused
        body = [*(op for condition in call.conditions for op in _check(condition)), _op(RETURN, verdict)]
        code += [_op(EQUAL, call.number, 1, 0), _op(JUMP, len(body)), *body]
    code.append(_op(RETURN, otherwise))
    if len(code) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(code)} instructions; the kernel takes {MAX_INSTRUCTIONS}")
    return b"".join(code)


def _check(condition: Condition) -> list[bytes]:
    """Fall through when it holds, kill when not."""
    ops: list[bytes] = []
    for position, value in enumerate(condition.values):
        test = _equals(condition, value)
        last = position == len(condition.values) - 1
        # Two ways out of a test: behind it (equal), or over the jump that stands there (not equal)
        ops += [*test, _op(JUMP, 1 + _length(condition, condition.values[position + 1 :]))]
        if last:
            ops.append(_op(RETURN, KILL_PROCESS))
    return ops


def _length(condition: Condition, values: tuple[int, ...]) -> int:
    """How many operations the tests of *values* take, with the jump behind each."""
    return sum(len(_equals(condition, value)) + 1 for value in values)


def _equals(condition: Condition, value: int) -> list[bytes]:
    """Go on when the argument equals *value*, skip one operation when not."""
    at = ARGUMENTS_AT + 8 * condition.index
    low, high = value & 0xFFFFFFFF, value >> 32
    return [
        _op(LOAD, at),
        _op(AND, condition.mask & 0xFFFFFFFF),
        _op(EQUAL, low, 0, 4),
        _op(LOAD, at + 4),
        _op(AND, condition.mask >> 32),
        _op(EQUAL, high, 0, 1),
    ]


def _op(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)


@cache
def compiled(name: str) -> bytes:
    """The filter we come with under that name. Raises ValueError when there is none."""
    if not re.fullmatch(r"[a-z0-9-]{1,32}", name) or not (path := FOLDER / f"{name}.txt").is_file():
        raise ValueError(f"there is no filter {name[:40]!r}")
    text = path.read_text()
    return assemble(parse(text), ALLOW if OTHERWISE_ALLOW in text.splitlines() else KILL_PROCESS)
