"""Where the Mersenne twisters of this process lie in memory, for the agent to fill them anew while all stands still.

A signal's handler comes when the main thread next runs Python code; other threads may draw before. So in a copy of the
sandbox the agent (guest/twisters.py), to which no process' memory is closed, writes to them itself. The table:

    | MARK | for each of `random` and `numpy`: address of 624 words, address of the index, not 0: the user's to seed |

Source: CPython's _randommodule.c (an object's head, int index, uint32_t state[624]; 3.6 to 3.13 looked at), numpy's
mt19937.h (uint32_t key[624], int pos). What does not look like that is left out.
"""

import struct
from typing import Any, List, Optional, Tuple

try:
    import ctypes
except ImportError:  # then the handler alone reseeds
    ctypes = None  # type: ignore[assignment]

MARK = b"casemate-twister"
WORDS = 624
_ENTRY = struct.Struct("QQQ")
_ROWS = ("random", "numpy")
_USERS = 16  # where in an entry


class Twisters:
    """The table. It is part of this process for good, and what it names is."""

    def __init__(self) -> None:
        self._held: List[Any] = []  # what was freed may not be written to
        empty = MARK + bytes(_ENTRY.size * len(_ROWS))
        self._table: Any = ctypes.create_string_buffer(empty, len(empty)) if ctypes is not None else None

    @property
    def address(self) -> int:
        return ctypes.addressof(self._table) if self._table is not None else 0

    def add(self, word: str, module: Any) -> None:
        """The generator behind the functions of *module*, if it is of the kind we know."""
        if self._table is None or word not in _ROWS:
            return
        found = (_of_random if word == "random" else _of_numpy)(module)
        if found is not None:
            held, words, index = found
            self._held.append(held)
            _ENTRY.pack_into(self._table, self._row(word), words, index, 0)

    def leave_to_user(self, word: str, is_users: bool) -> None:
        if self._table is not None and word in _ROWS:
            struct.pack_into("Q", self._table, self._row(word) + _USERS, is_users)

    def _row(self, word: str) -> int:
        return len(MARK) + _ENTRY.size * _ROWS.index(word)


_Found = Optional[Tuple[Any, int, int]]


def _of_random(module: Any) -> _Found:
    generator: Any = getattr(module, "_inst", None)
    if type(generator) is not module.Random:
        return None
    *words, index = generator.getstate()[1]
    place = id(generator) + object.__basicsize__
    return _checked(generator, place + 4, place, words, index)


def _of_numpy(module: Any) -> _Found:
    generator: Any = getattr(getattr(getattr(module, "mtrand", None), "_rand", None), "_bit_generator", None)
    if type(generator).__name__ != "MT19937":
        return None
    state = generator.state["state"]
    place = int(generator.ctypes.state_address)
    return _checked(generator, place, place + 4 * WORDS, [int(word) for word in state["key"]], int(state["pos"]))


def _checked(held: Any, words: int, index: int, expected: List[int], position: int) -> _Found:
    """Whether what lies there is what the generator says of itself."""
    if len(expected) != WORDS or ctypes.string_at(words, 4 * WORDS) != struct.pack("%dI" % WORDS, *expected):
        return None
    if ctypes.string_at(index, 4) != struct.pack("i", position):
        return None
    return held, words, index
