"""A guest of some thirty bytes, as an ELF file: it counts in its memory and says so on the serial port, for ever.

For measuring what a VMM costs where there is nothing else to wait for. Firecracker starts a 64-bit ELF at its entry,
in long mode with the low memory mapped as it is. Source: its arch/x86_64; the ELF-64 object file format
"""

from __future__ import annotations

import struct

AT = 0x200000  # where it is loaded
COUNTER = 0x300000
SERIAL = 0x3F8
CODE = bytes.fromhex("48ff0425") + struct.pack("<I", COUNTER)  # again: inc qword [COUNTER]
CODE += (
    bytes.fromhex("b078 66ba") + struct.pack("<H", SERIAL) + bytes.fromhex("ee")
)  # mov al, 'x'; mov dx, SERIAL; out dx, al
CODE += b"\xeb" + struct.pack("<b", -(len(CODE) + 2))  # jmp again
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
EXECUTABLE, X86_64, LOAD, READ_AND_RUN = 2, 62, 1, 5


def tiny_guest() -> bytes:
    """The file."""
    first = HEADER.size + SEGMENT.size
    header = HEADER.pack(
        b"\x7fELF\x02\x01\x01",
        EXECUTABLE,
        X86_64,
        1,
        AT + first,
        HEADER.size,
        0,
        0,
        HEADER.size,
        SEGMENT.size,
        1,
        0,
        0,
        0,
    )
    size = first + len(CODE)
    return header + SEGMENT.pack(LOAD, READ_AND_RUN, 0, AT, AT, size, size, 4096) + CODE
