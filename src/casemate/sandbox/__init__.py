"""What a user holds: a sandbox, from the wish to the end."""

from casemate.sandbox.admission import Admission, Amount, Relief
from casemate.sandbox.channel import Channel
from casemate.sandbox.faults import parse_fault
from casemate.sandbox.fitness import Here, Made, Misfit, check_fit, sentences, unfit
from casemate.sandbox.handle import Handle
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.ids import is_id, is_name, new_id
from casemate.sandbox.link import Link
from casemate.sandbox.plan import refusals_named
from casemate.sandbox.pool_spec import SHARED, PoolSpec, pools_of
from casemate.sandbox.records import Records
from casemate.sandbox.recover import Recovered, Sweeper, recover
from casemate.sandbox.resuming import Kit, Resumer
from casemate.sandbox.seal import Seal, open_seal
from casemate.sandbox.service import Sandboxes, open_sandboxes
from casemate.sandbox.snapshot import Snapshot, kind_said, machine_spec, needed_by
from casemate.sandbox.spec import SandboxInfo, SandboxSpec, Shape, ShapeWish, StateReason
from casemate.sandbox.starting import Starter, introduce
from casemate.sandbox.states import Reason, State
from casemate.sandbox.supervisor import Supervisor
from casemate.sandbox.suspending import Suspender

__all__ = [
    "Kit",
    "Suspender",
    "Starter",
    "Resumer",
    "Records",
    "Admission",
    "Amount",
    "Channel",
    "Handle",
    "Here",
    "Introduction",
    "Link",
    "Made",
    "Misfit",
    "PoolSpec",
    "Reason",
    "Recovered",
    "Relief",
    "SHARED",
    "SandboxInfo",
    "SandboxSpec",
    "Sandboxes",
    "Seal",
    "Shape",
    "ShapeWish",
    "Snapshot",
    "State",
    "StateReason",
    "Supervisor",
    "Sweeper",
    "check_fit",
    "introduce",
    "is_id",
    "is_name",
    "machine_spec",
    "kind_said",
    "needed_by",
    "new_id",
    "open_sandboxes",
    "open_seal",
    "parse_fault",
    "pools_of",
    "recover",
    "refusals_named",
    "sentences",
    "unfit",
]
