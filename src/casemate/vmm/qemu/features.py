"""What a guest's CPU can do, as QEMU itself expands the model we give it.

Under software emulation this follows from the build alone and is kept beside it, ``vmm/<sha256>/cpu-tcg``, so
that a daemon's start does not run QEMU. Under KVM it is the host's processor, kernel and microcode as well.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from typing import Any

from casemate.errors import ToolFailed
from casemate.vmm.contract import Accelerator
from casemate.vmm.qemu.closure import NAME, Closure
from casemate.vmm.qemu.plan import CPU_MODELS

LIMIT_S = 20
SAID = 400


def find_features(closure: Closure, accelerator: Accelerator) -> str:
    """The names of what is on, sorted. Blocks. Raises ToolFailed."""
    known = closure.usr.parent / f"cpu-{accelerator}"
    if accelerator != "kvm" and known.is_file():
        return known.read_text()
    features = _measure(accelerator)
    temporary = known.parent / f".{secrets.token_hex(6)}"
    temporary.write_text(features)
    temporary.rename(known)
    return features


def _measure(accelerator: Accelerator) -> str:
    """Asked of the installed QEMU, which has no guest and runs no vCPU for it."""
    model = {"name": CPU_MODELS[accelerator]}
    asked: list[dict[str, Any]] = [
        {"execute": "qmp_capabilities"},
        {"execute": "query-cpu-model-expansion", "arguments": {"type": "full", "model": model}},
        {"execute": "quit"},
    ]
    argv = [shutil.which(NAME) or NAME, "-M", "microvm", "-accel", accelerator, "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-S", "-qmp", "stdio"]
    try:
        done = subprocess.run(
            argv,
            input="".join(json.dumps(line) + "\n" for line in asked),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        found = [answer["return"]["model"]["props"] for answer in answers if "model" in answer.get("return", {})]
        return " ".join(sorted(name for name, value in found[0].items() if value is True))
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, AttributeError) as error:
        raise ToolFailed(
            f"QEMU does not say what its CPU has: {str(error)[:SAID]}",
            evidence={"argv": argv, "stderr": str(getattr(error, "stderr", ""))[-SAID:]},
        ) from error
