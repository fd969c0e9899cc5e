"""Names of sandboxes: 128 random bits in 26 lower-case Crockford base-32 characters.

No dash, fit for a DNS label, a cgroup, a folder, a jailer id and an E2B id.
"""

from __future__ import annotations

import re
import secrets

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u: nobody misreads one
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_ID = re.compile(f"[0-7][{ALPHABET}]{{25}}")  # 26 characters hold 130 bits; the first carries three


def new_id() -> str:
    number = secrets.randbits(128)
    return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None
