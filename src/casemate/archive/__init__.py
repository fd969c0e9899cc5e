"""Folders as tar, for the agent and for the SDK."""

from casemate.archive.headers import Member
from casemate.archive.pack import pack
from casemate.archive.reader import Reader
from casemate.archive.unpack import Unpacked, Unpacker

__all__ = ["Member", "Reader", "Unpacked", "Unpacker", "pack"]
