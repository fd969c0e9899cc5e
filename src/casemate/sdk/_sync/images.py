# Generated from _async/images.py by tools/generate_sync.py; change that and run it.
"""The daemon's images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from casemate.sdk._sync.client import Client

BUILD_ANSWER_S = 120.0  # between two words about a build; a step may be long and silent
Progress = Callable[[str, str, float | None], object]


class Images:
    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[dict[str, Any]]:
        return self._client.pages("/v1/images", "images")

    def get(self, ref: str) -> dict[str, Any]:
        """One version whole: artifacts, platform, and how a clone of it is started. Raises NotFound."""
        return self._client.call("GET", f"/v1/images/{ref}", answer_s=BUILD_ANSWER_S)

    def build(self, name: str, *, force: bool = False, progress: Progress | None = None) -> dict[str, Any]:
        """Make the image usable, unless it is; the image. *progress* gets step, message and fraction or None.

        Raises NotFound without such a recipe, HostError, VmmError, GuestError.
        """
        path, body = f"/v1/images/{name}/build", {"force": force}
        with self._client.lines("POST", path, body=body, answer_s=BUILD_ANSWER_S) as events:
            for event in events:
                if event["event"] == "end":
                    image: dict[str, Any] = event["image"]
                    return image
                if progress is not None:
                    progress(event["step"], event["message"], event.get("fraction"))
        raise AssertionError("a stream of events ends with one or raises")
