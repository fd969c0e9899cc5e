"""Makes leaving cheap: what was imported before the fork is not taken apart object by object.

A Python that ends clears every module. In a child that would touch, hence copy, most pages it shares with
the zygote, and take longer than a short script. The last atexit callback therefore takes the zygote's modules out of
CPython's sight; the script's own modules and objects end as always.

After Python, exit(3) runs the destructors of a hundred and more libraries, a third of a second in an emulated
guest. They are the zygote's and have nothing to do; so unless the script has loaded libraries of its own, the
first thing exit(3) does is to write out C's streams, the second to end the process with the same status.
Source: on_exit(3); glibc's link.h (struct link_map: one entry per library, a new one is put last).
"""

import atexit
import sys
from typing import Any, Dict, List, Optional

try:
    import ctypes
except ImportError:  # then every library's destructor runs
    ctypes = None  # type: ignore[assignment]

_ENDS_AS_ALWAYS = {"__main__", "sys", "builtins"}
_shared: Dict[str, Any] = {}
_kept: List[Any] = []
_kept.append(_kept)  # a cycle among frozen objects: never collected


_libc: Any = None
_last_library: Optional[int] = None  # where its link_map lies
_NEXT_LIBRARY = 24  # the offset of l_next


def register() -> None:
    """To be called before anything else registers: callbacks run last in, first out."""
    atexit.register(_leave)


def share_modules() -> None:
    """To be called before gc.freeze(): all modules loaded by now are the zygote's."""
    _shared.update((name, module) for name, module in sys.modules.items() if name not in _ENDS_AS_ALWAYS)
    _note_libraries()


def _note_libraries() -> None:
    global _libc, _last_library
    if ctypes is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        return
    _libc = ctypes.CDLL(None)
    if hasattr(_libc, "on_exit") and hasattr(_libc, "gnu_get_libc_version"):
        place = _libc._handle
        while place:
            _last_library, place = place, _next_library(place)


def _next_library(place: int) -> Optional[int]:
    return ctypes.c_void_p.from_address(place + _NEXT_LIBRARY).value


def _skip_destructors() -> None:
    if _last_library is not None and _next_library(_last_library) is None:
        _libc.on_exit(_libc._exit, None)
        _libc["__cxa_atexit"](_libc.fflush, None, None)  # what is registered last runs first


def _leave() -> None:
    _skip_destructors()
    for name, module in _shared.items():
        if sys.modules.get(name) is module:
            _kept.append(module)
            del sys.modules[name]
