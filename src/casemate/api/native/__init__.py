"""The native HTTP API, version 1: what the SDK and the CLI speak."""

from casemate.api.native.app import app

__all__ = ["app"]
