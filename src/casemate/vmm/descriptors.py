"""The descriptors of a VMM, as a plan has them: numbers, and what is behind each."""

from __future__ import annotations

from dataclasses import dataclass

from casemate.host.jail import FIRST_DESCRIPTOR


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One of them. *what*: ``memory``, ``state``, ``drive 0`` …, and what else a plan names."""

    number: int
    what: str
    writable: bool = False


class Numbers:
    """Hands out descriptor numbers in order."""

    def __init__(self) -> None:
        self.taken: list[Descriptor] = []

    def add(self, what: str, *, writable: bool = False) -> int:
        number = FIRST_DESCRIPTOR + len(self.taken)
        self.taken.append(Descriptor(number, what, writable))
        return number
