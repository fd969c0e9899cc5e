"""A shared object that has no code: whoever loads it calls one function of what is loaded already.

The address that the dynamic linker would call to initialise it is a relocation to that function, which takes nothing.

    ELF header, two program headers (it is loaded whole; its dynamic section)
    symbols: none, the function
    names
    the array of initialisers, of one: filled in by the relocation
    that relocation, the dynamic section

Source: System V ABI, chapters 4 and 5, and its supplement for the processor.
"""

import platform
import struct
from typing import Optional

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_TAG = struct.Struct("<QQ")
_PROCESSORS = {"x86_64": (62, 1), "aarch64": (183, 257)}  # e_machine; a relocation to a symbol's address
_PAGE = 65536
_STRTAB, _SYMTAB, _RELA, _RELASZ, _RELAENT, _STRSZ, _SYMENT, _INIT_ARRAY, _INIT_ARRAYSZ = 5, 6, 7, 8, 9, 10, 11, 25, 27


def calling(function: str, processor: Optional[str] = None) -> bytes:
    """Raises KeyError for a *processor* that is not known; without one it is this machine's."""
    machine, absolute = _PROCESSORS[processor or platform.machine()]
    symbols = bytes(_SYMBOL.size) + _SYMBOL.pack(1, 0x12, 0, 0, 0, 0)  # a global function, defined elsewhere
    names = b"\0" + function.encode() + b"\0"
    names += bytes(-len(names) % 8)
    at_symbols = _HEADER.size + 2 * _PROGRAM.size
    at_names = at_symbols + len(symbols)
    at_initialisers = at_names + len(names)
    at_relocation = at_initialisers + 8
    at_dynamic = at_relocation + _RELOCATION.size
    tags = {
        _STRTAB: at_names,
        _STRSZ: len(names),
        _SYMTAB: at_symbols,
        _SYMENT: _SYMBOL.size,
        _RELA: at_relocation,
        _RELASZ: _RELOCATION.size,
        _RELAENT: _RELOCATION.size,
        _INIT_ARRAY: at_initialisers,
        _INIT_ARRAYSZ: 8,
        0: 0,
    }
    dynamic = b"".join(_TAG.pack(*tag) for tag in tags.items())
    size = at_dynamic + len(dynamic)
    sizes = (_HEADER.size, _PROGRAM.size, 2, 0, 0, 0)
    return b"".join(
        (
            _HEADER.pack(b"\x7fELF\2\1\1", 3, machine, 1, 0, _HEADER.size, 0, 0, *sizes),
            _PROGRAM.pack(1, 6, 0, 0, 0, size, size, _PAGE),
            _PROGRAM.pack(2, 6, at_dynamic, at_dynamic, at_dynamic, len(dynamic), len(dynamic), 8),
            symbols,
            names,
            bytes(8),
            _RELOCATION.pack(at_initialisers, 1 << 32 | absolute, 0),
            dynamic,
        )
    )
