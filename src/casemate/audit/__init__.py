"""What happened that somebody may have to answer for: typed events in an append-only chain."""

from casemate.audit.events import Event, EventKind
from casemate.audit.trail import Broken, Trail

__all__ = ["Broken", "Event", "EventKind", "Trail"]
