"""Makes a copied process draw random numbers of its own.

Whatever state was set up before the snapshot is the same in every clone. Only modules that are loaded
are touched; what asks the kernel (`os.urandom`, `secrets`, `uuid4`) needs nothing.
"""

import sys
from hashlib import blake2b
from typing import Any


def reseed(entropy: bytes) -> None:
    """Reseed every generator in this process from *entropy* (at least 32 bytes, never used before)."""
    _standard_library(entropy)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        digest = _derive(entropy, b"numpy")
        numpy_random.seed([int.from_bytes(digest[i : i + 4], "little") for i in range(0, len(digest), 4)])
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(_derive(entropy, b"ssl"), 64.0)


def _derive(entropy: bytes, purpose: bytes) -> bytes:
    return blake2b(entropy, person=purpose).digest()


def _standard_library(entropy: bytes) -> None:
    random: Any = sys.modules.get("random")
    if random is not None:
        random.seed(_derive(entropy, b"random"))
    uuid: Any = sys.modules.get("uuid")
    if uuid is not None:
        uuid._node = None
        uuid._last_timestamp = None
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None
