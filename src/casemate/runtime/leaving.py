"""Makes leaving cheap: what was imported before the fork is not taken apart object by object.

A Python that ends clears every module. In a child that would touch, hence copy, most pages it shares with
the zygote, and take longer than a short script. The last atexit callback therefore takes the zygote's modules out of
CPython's sight; the script's own modules and objects end as always.
"""

import atexit
import sys
from typing import Any, Dict, List

_ENDS_AS_ALWAYS = {"__main__", "sys", "builtins"}
_shared: Dict[str, Any] = {}
_kept: List[Any] = []
_kept.append(_kept)  # a cycle among frozen objects: never collected


def register() -> None:
    """To be called before anything else registers: callbacks run last in, first out."""
    atexit.register(_leave)


def share_modules() -> None:
    """To be called before gc.freeze(): all modules loaded by now are the zygote's."""
    _shared.update((name, module) for name, module in sys.modules.items() if name not in _ENDS_AS_ALWAYS)


def _leave() -> None:
    for name, module in _shared.items():
        if sys.modules.get(name) is module:
            _kept.append(module)
            del sys.modules[name]
