"""Makes a copied process draw random numbers of its own.

Whatever state was set up before the snapshot is the same in every clone. Only modules that are loaded
are touched, and one may be in the midst of its import; what asks the kernel (`os.urandom`, `secrets`, `uuid4`) needs
nothing.
"""

import _thread
import functools
import sys
from hashlib import blake2b
from typing import Any, Callable, FrozenSet, Optional, Set

from .imports import when_imported
from .twisters import Twisters

SIGNAL = 51  # from the agent, to what runs in a copy of its sandbox; SIGRTMIN+17, which no program is known to use
_SEEDS = {
    "random": ("random", "seed", "setstate"),
    "numpy": ("numpy.random", "seed", "set_state"),
    "torch": ("torch", "manual_seed", "set_rng_state"),
}  # the word we use → the module, and what sets its seed


def reseed(entropy: bytes, but: FrozenSet[str] = frozenset()) -> None:
    """Reseed every generator in this process from *entropy* (at least 32 bytes, never used before).

    *but*: those among `random`, `numpy` and `torch` that are left as they are.
    """
    for act in _ACTS:
        act(entropy, but)


class Seeds:
    """Which libraries the user has given a seed in this process, as far as it went through their module's functions."""

    def __init__(self) -> None:
        self._set: Set[str] = set()
        self.twisters = Twisters()
        for word, (module, *names) in _SEEDS.items():
            when_imported(module, functools.partial(self._watch, word, names))

    def reseed(self, entropy: bytes) -> None:
        """As `reseed`, but what the user has seeded stays as it is.

        Whatever fails, as what the user has replaced may do, the others are reseeded. Raises the last failure.
        """
        failure: Optional[BaseException] = None
        for act in _ACTS:
            try:
                act(entropy, frozenset(self._set))
            except BaseException as error:
                failure = error
        if failure is not None:
            raise failure

    def reseed_now(self, entropy: bytes) -> None:
        """As `reseed`, from a signal's handler: in the midst of whatever this thread does.

        It may be in a function of numpy's that holds the generator's lock while it calls Python code (`shuffle`): to
        wait for that here would be for ever, so another thread does.
        """
        lock = _numpys("_bit_generator", "lock")
        if lock is None or lock.acquire(False):
            if lock is not None:
                lock.release()
            self.reseed(entropy)
        else:
            _thread.start_new_thread(self.reseed, (entropy,))

    def _watch(self, word: str, names: Any, module: Any) -> None:
        for name in names:
            original = getattr(module, name, None)
            if original is not None:
                setattr(module, name, self._observed(word, original))
        self.twisters.add(word, module)

    def _observed(self, word: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def observed(*args: Any, **kwargs: Any) -> Any:
            was = word in self._set
            is_given = any(given is not None for given in (*args, *kwargs.values()))
            if is_given:  # noted first: what is copied between the two may have the old numbers, not lose its seed
                self._note(word, True)
            try:
                answer = original(*args, **kwargs)
            except BaseException:
                self._note(word, was)
                raise
            if not is_given:  # seed(): the user asks for randomness
                self._note(word, False)
            return answer

        return observed

    def _note(self, word: str, is_users: bool) -> None:
        (self._set.add if is_users else self._set.discard)(word)
        self.twisters.leave_to_user(word, is_users)


def _original(seed: Callable[..., Any]) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(seed, "__wrapped__", seed)
    return found


def _derive(entropy: bytes, purpose: bytes) -> bytes:
    return blake2b(entropy, person=purpose).digest()


def _random(entropy: bytes, but: FrozenSet[str]) -> None:
    random: Any = sys.modules.get("random")
    if random is not None and "random" not in but and hasattr(random, "seed"):
        _original(random.seed)(_derive(entropy, b"random"))


def _numpy(entropy: bytes, but: FrozenSet[str]) -> None:
    seed: Any = getattr(sys.modules.get("numpy.random"), "seed", None) or _numpys("seed")
    if seed is not None and "numpy" not in but:
        digest = _derive(entropy, b"numpy")
        _original(seed)([int.from_bytes(digest[i : i + 4], "little") for i in range(0, len(digest), 4)])


def _numpys(*names: str) -> Any:
    """Of the generator behind numpy.random's functions, that is there before they are; None: there is none."""
    found: Any = sys.modules.get("numpy.random.mtrand")
    for name in ("_rand", *names):
        found = getattr(found, name, None)
    return found


def _torch(entropy: bytes, but: FrozenSet[str]) -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and "torch" not in but and hasattr(torch, "manual_seed"):
        _original(torch.manual_seed)(int.from_bytes(_derive(entropy, b"torch")[:8], "little"))


def _standard_library(entropy: bytes, but: FrozenSet[str]) -> None:
    uuid: Any = sys.modules.get("uuid")
    if uuid is not None:
        uuid._node = None
        uuid._last_timestamp = None
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None
    ssl: Any = sys.modules.get("ssl")
    if hasattr(ssl, "RAND_add"):
        ssl.RAND_add(_derive(entropy, b"ssl"), 64.0)


_ACTS = (_random, _numpy, _torch, _standard_library)
