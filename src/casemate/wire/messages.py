"""What generation 1 says, as data: ``python -m casemate.wire.messages`` prints ``schema/gen-1.json``.

Agents live in snapshots and outlive the host's code, so the file never changes: a new word is a new generation.
Field types: ``?`` may be null or missing, ``…[]`` a list, ``{}`` an object of texts. Neither end imports this.
"""

from __future__ import annotations

import json
from typing import Any

from casemate.wire import bodies, channel, connection, frames

_ENDS = {
    "exited": {"code": "int"},
    "signaled": {"signal": "int"},
    "timed-out": {"after_s": "number"},
    "out-of-memory": {},
}
_CELL_ENDS = {
    "ok": {},
    "error": {"name": "text", "value": "text", "traceback": "text"},
    "interrupted": {"state_kept": "bool"},
    "timed-out": {"after_s": "number", "state_kept": "bool"},
    "out-of-memory": {},
    "context-died": {"reason": "text"},
}
_CONTEXT = {
    "context_id": "text",
    "language": "text",
    "version": "text",
    "cwd": "text",
    "state": "starting|idle|busy|dead",
    "queued": "int",
    "execution_count": "int",
    "pid": "int",
}
_CELL_NEWS: dict[str, Any] = {
    "bytes": "stdout, sub 2 stderr, sub 3 a result",
    "queued": {"place": "int"},
    "begun": {"execution_count": "int"},
    "result": {"size": "int"},
    "end": {
        "end": _CELL_ENDS,
        "execution_count": "int",
        "duration_ms": "number",
        "files_changed": "{path,change: created|modified|deleted}[]",
        "files_cut": "int",
        "left_out": {"results": "int", "result_bytes": "int"},
    },
}
_ENTRY = {
    "name": "text",
    "path": "text",
    "type": "file|dir|symlink|other",
    "size": "int",
    "mode": "int",
    "uid": "int",
    "gid": "int",
    "mtime_ns": "int",
}

PROOF = "HMAC-SHA256(entropy, casemate-handshake-1|nonce|sandbox_id|hostname|machine_id|boot_id|wall_clock_ns)"
CONNECTION: dict[str, Any] = {
    "HELLO": {
        "generation": "int",
        "sandbox_id": "text",
        "hostname": "text",
        "machine_id": "hex",
        "entropy": "base64",
        "nonce": "hex",
        "wall_clock_ns": "int",
        "env": "{}",
        "user": "text?",
        "cwd": "text?",
        "fresh": "bool",
        "copy": "bool?",
    },
    "READY": {
        "generation": "int",
        "agent": "text",
        "boot_id": "uuid",
        "wall_clock_ns": "int",
        "proof": "hex",
        "copy": "bool?",
    },
    "DENY": {"code": "text", "hint": "text", "message": "text?", "errno": "text?"},
    "RESET": {"code": "text", "hint": "text"},
}

CHANNELS: dict[str, Any] = {
    "exec": {
        "start": {
            "params": {
                "exec_id": "text",
                "argv": "text[]",
                "env": "{}",
                "cwd": "text?",
                "user": "text?",
                "timeout_s": "number?",
                "stdin": "bool",
                "on_disconnect": "kill|keep",
                "cold": "bool",
                "script": "{path}?",
                "pty": "{rows,cols,term}?",
            },
            "accept": {"exec_id": "text", "pid": "int", "stdout_offset": "int", "stderr_offset": "int"},
            "to_guest": {
                "bytes": "stdin",
                "stdin-eof": {},
                "signal": {"signal": "text"},
                "resize": {"rows": "int", "cols": "int"},
            },
            "to_host": {
                "bytes": "stdout, sub 2 stderr",
                "end": {"end": _ENDS, "duration_ms": "number", "cpu_ms": "number?", "peak_memory_mib": "number?"},
            },
        },
        "attach": {
            "params": {"exec_id": "text", "stdout_offset": "int", "stderr_offset": "int"},
            "accept": {"exec_id": "text", "pid": "int", "stdout_offset": "int", "stderr_offset": "int"},
            "then": "as start",
        },
        "signal": {"params": {"exec_id": "text", "signal": "text"}, "accept": {}},
        "list": {"params": {}, "accept": {"execs": "object[]"}},
        "remove": {"params": {"exec_id": "text"}, "accept": {}},
    },
    "cell": {
        "run": {
            "params": {
                "cell_id": "text",
                "context": "text",
                "language": "text?",
                "user": "text?",
                "timeout_s": "number?",
                "grace_s": "number?",
                "stdin": "bool",
                "detach": "bool",
                "limits": "object?",
                "act": "complete|inspect?",
                "cursor": "int?",
                "detail": "int?",
            },
            "accept": {"cell_id": "text", "context": "text", "place": "int"},
            "to_guest": {"bytes": "the code, sub 2 stdin"},
            "to_host": _CELL_NEWS,
        },
        "join": {
            "params": {"cell_id": "text", "offset": "int"},
            "accept": {"cell_id": "text", "context": "text", "offset": "int"},
            "to_host": "as run",
        },
        "interrupt": {"params": {"cell_id": "text"}, "accept": {}},
        "list": {"params": {}, "accept": {"cells": "object[]"}},
    },
    "context": {
        "create": {
            "params": {"context_id": "text", "language": "text", "cwd": "text?", "env": "{}", "user": "text?"},
            "accept": {"context": _CONTEXT},
        },
        "list": {"params": {}, "accept": {"contexts": "context[]"}},
        "restart": {"params": {"context_id": "text"}, "accept": {"context": _CONTEXT}},
        "interrupt": {"params": {"context_id": "text"}, "accept": {}},
        "remove": {"params": {"context_id": "text"}, "accept": {}},
    },
    "file": {
        "read": {
            "params": {"path": "text", "user": "text?", "offset": "int", "length": "int?"},
            "accept": {"size": "int", "mode": "int"},
            "to_host": {"bytes": "the file"},
        },
        "write": {
            "params": {"path": "text", "user": "text?", "mode": "int?", "make_parents": "bool"},
            "accept": {},
            "to_guest": {"bytes": "the file"},
            "to_host": {"written": {"size": "int"}},
        },
        "stat": {"params": {"path": "text", "user": "text?", "follow": "bool"}, "accept": _ENTRY},
        "list": {"params": {"path": "text", "user": "text?"}, "accept": {"entries": "entry[]"}, "to_host": "more"},
        "remove": {"params": {"path": "text", "user": "text?", "recursive": "bool"}, "accept": {}},
        "mkdir": {"params": {"path": "text", "user": "text?"}, "accept": {}},
        "move": {"params": {"path": "text", "user": "text?", "to": "text"}, "accept": {}},
    },
    "control": {
        "prepare": {"params": {"zygote": "bool"}, "accept": {}},
        "sync": {"params": {}, "accept": {}},
        "quiesce": {"params": {}, "accept": {}},
        "thaw": {"params": {}, "accept": {}},
        "stats": {"params": {}, "accept": {"user": "object", "memory_total_bytes": "int"}},
        "warm": {"params": {}, "accept": {}},
        "activity": {
            "params": {},
            "accept": {
                "execs_running": "int",
                "terminals_running": "int",
                "cells_running": "int",
                "user_cpu_ms": "int",
                "next_timer_ms": "int?",
            },
        },
    },
    "archive": {
        "pack": {"params": {"path": "text", "user": "text?"}, "accept": {}, "to_host": {"bytes": "tar"}},
        "unpack": {
            "params": {"path": "text", "user": "text?"},
            "accept": {},
            "to_guest": {"bytes": "tar"},
            "to_host": {"unpacked": {"members": "int", "size": "int"}},
        },
    },
    "tcp-in": {
        "": {"params": {"port": "int"}, "accept": {}, "to_guest": {"bytes": "in"}, "to_host": {"bytes": "out"}},
        "list": {"params": {}, "accept": {"ports": "object[]"}},
    },
    # Named, and answered `not-served` until there is an egress broker.
    "tcp-out": {"": {"params": {"host": "text", "port": "int"}}},
    "dns": {"": {"params": {}}},
    "log": {"": {"params": {}}},
}


def schema() -> dict[str, Any]:
    return {
        "generation": frames.GENERATION,
        "header": {"struct": frames.HEADER.format, "fields": ["length", "channel", "kind", "sub", "zero"]},
        "frames": {name: number for number, name in enumerate(frames.KINDS)},
        "subs": {"message": frames.MESSAGE, "bytes": frames.BYTES, "stderr": frames.STDERR, "result": frames.RESULT},
        "magic": frames.MAGIC.hex(),
        "limits": {
            "nonce_bytes": frames.NONCE_BYTES,
            "payload_bytes": frames.MAX_PAYLOAD,
            "preamble_bytes": frames.PREAMBLE_BYTES,
            "skipped_bytes": frames.MAX_SKIPPED,
            "json_bytes": bodies.MAX_JSON,
            "json_depth": bodies.MAX_DEPTH,
            "json_containers": bodies.MAX_CONTAINERS,
            "window_bytes": connection.WINDOW,
            "least_cost_bytes": channel.MIN_COST,
            "channels": connection.MAX_CHANNELS,
            "pings": connection.MAX_PINGS,
        },
        "proof": PROOF,
        "connection": CONNECTION,
        "channels": CHANNELS,
    }


def render() -> str:
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(render(), end="")
