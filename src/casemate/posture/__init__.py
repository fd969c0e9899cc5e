"""Checks as data: is this host fit, and how safe is it?"""

from casemate.posture.check import Check, Status
from casemate.posture.kvm import Verdict, find_verdict
from casemate.posture.report import Report, as_text, examine, summary

__all__ = ["Check", "Report", "Status", "Verdict", "as_text", "examine", "find_verdict", "summary"]
