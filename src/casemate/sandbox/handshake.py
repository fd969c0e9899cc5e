"""The first exchange with a clone: fresh entropy, clock and identity, before any user code.

The answer proves that the agent had *this* clone's entropy in hand when it read its clock and
boot id back; a stale or replayed answer fails.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from casemate.errors import ProtocolViolation
from casemate.sandbox import parse

GENERATION = 1
ENTROPY_BYTES = 64
_TEXT_AT_MOST = 64  # characters, of a digest
CLOCK_TOLERANCE_S = 2.0  # an emulated guest on a busy host may be slow to answer


@dataclass(frozen=True, slots=True)
class Introduction:
    """One clone's secrets of birth; used once and dropped.

    *copy*: of a sandbox that was somebody's, whose user processes are frozen: its programs and cells stay, under ids of
    their own, and *env* is laid over what is there. *user* and *cwd* None: as they are.
    """

    guest_id: str
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: str | None = None
    fresh: bool = True
    copy: bool = False
    entropy: bytes = field(default_factory=lambda: secrets.token_bytes(ENTROPY_BYTES))
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    machine_id: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def hostname(self) -> str:
        return self.guest_id[:12]

    def hello(self) -> dict[str, Any]:
        """The HELLO body; its clock is this very moment's, so make it right before sending."""
        return {
            "generation": GENERATION,
            "sandbox_id": self.guest_id,
            "hostname": self.hostname,
            "machine_id": self.machine_id,
            "entropy": base64.b64encode(self.entropy).decode(),
            "nonce": self.nonce,
            "wall_clock_ns": time.time_ns(),
            "env": dict(self.env),
            "user": self.user,
            "cwd": self.cwd,
            "fresh": self.fresh,
            "copy": self.copy,
        }

    def check(self, ready: Mapping[str, Any], sent_ns: int, arrived_ns: int) -> None:
        """Raises ProtocolViolation unless *ready* proves that all of it was applied, between the two times."""
        if ready.get("generation") != GENERATION:
            raise ProtocolViolation(f"sandbox {self.guest_id}: agent of another generation")
        boot_id, proof = (parse.text(ready, name, _TEXT_AT_MOST) for name in ("boot_id", "proof"))
        wall_clock_ns = parse.whole(ready, "wall_clock_ns")
        if self.copy and ready.get("copy") is not True:
            raise ProtocolViolation(f"sandbox {self.guest_id}: its agent does not know that it is a copy")
        text = (
            f"casemate-handshake-1|{self.nonce}|{self.guest_id}|{self.hostname}"
            f"|{self.machine_id}|{boot_id}|{wall_clock_ns}"
        )
        expected = hmac.new(self.entropy, text.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected.encode(), proof.encode()):
            raise ProtocolViolation(f"sandbox {self.guest_id}: the hand-shake's proof is wrong")
        slack_ns = int(CLOCK_TOLERANCE_S * 1e9)
        if not sent_ns - slack_ns <= wall_clock_ns <= arrived_ns + slack_ns:
            raise ProtocolViolation(f"sandbox {self.guest_id}: the guest's clock was not set")
