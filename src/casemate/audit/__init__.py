"""What happened that somebody may have to answer for: typed events in an append-only chain."""

from casemate.audit.anchor import Mark
from casemate.audit.events import Event, EventKind
from casemate.audit.tally import Tally
from casemate.audit.trail import Broken, Trail, Verification

__all__ = ["Broken", "Event", "EventKind", "Mark", "Tally", "Trail", "Verification"]
