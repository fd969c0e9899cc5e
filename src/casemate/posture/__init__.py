"""Checks as data: is this host fit, and how safe is it?"""

from casemate.posture.check import Check, Status
from casemate.posture.report import Report, as_text, examine, summary

__all__ = ["Check", "Report", "Status", "as_text", "examine", "summary"]
