# Generated from _async/images.py by tools/generate_sync.py; change that and run it.
"""The daemon's images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

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
        return self._client.call("GET", _path(ref), answer_s=BUILD_ANSWER_S)

    def build(self, name: str, *, force: bool = False, progress: Progress | None = None) -> dict[str, Any]:
        """Make the image usable, unless it is; the image. *progress* gets step, message and fraction or None.

        Raises NotFound without such a recipe, HostError, VmmError, GuestError.
        """
        path = f"/v1/images/{quote(name, safe='')}/build"
        image: dict[str, Any] = (self._followed(path, {"force": force}, progress))["image"]
        return image

    def verify(self, ref: str, *, progress: Progress | None = None) -> dict[str, Any]:
        """Hash every stored file of a version in full: ``ok``, and ``files`` with what is wrong with each."""
        report: dict[str, Any] = (self._followed(f"{_path(ref)}/verify", {}, progress))["report"]
        return report

    def remove(self, ref: str, *, force: bool = False) -> dict[str, Any]:
        """Delete a version with its snapshots; what went, and ``size_bytes``.

        Raises StateConflict while a sandbox stands on it, or without *force* when it is the active one.
        """
        params = {"force": "1"} if force else None
        return self._client.call("DELETE", _path(ref), params=params, answer_s=BUILD_ANSWER_S)

    def prune(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Delete old versions and what nothing needs; what went, or with *dry_run* would go, and ``size_bytes``."""
        body = {"dry_run": dry_run}
        return self._client.call("POST", "/v1/images/prune", body=body, answer_s=BUILD_ANSWER_S)

    def export(self, ref: str) -> AbstractContextManager[Iterator[bytes]]:
        """One version as a tar in pieces: ``with images.export(ref) as pieces: for …``."""
        return self._client.stream("GET", f"{_path(ref)}/export", answer_s=BUILD_ANSWER_S)

    def import_(self, data: bytes | Iterable[bytes], *, name: str | None = None) -> dict[str, Any]:
        """An exported image becomes the next, active version of its name, or of *name*.

        Raises InvalidSpec for what is no exported image or was damaged, HostFull; nothing of it stays then.
        """
        response = self._client.request(
            "POST",
            "/v1/images",
            content=data,
            params={"name": name} if name else None,
            answer_s=BUILD_ANSWER_S,
            write_s=BUILD_ANSWER_S,
        )
        image: dict[str, Any] = response.json()
        return image

    def _followed(self, path: str, body: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
        with self._client.lines("POST", path, body=body, answer_s=BUILD_ANSWER_S) as events:
            for event in events:
                if event["event"] == "end":
                    return event
                if progress is not None:
                    progress(event["step"], event["message"], event.get("fraction"))
        raise AssertionError("a stream of events ends with one or raises")


def _path(ref: str) -> str:
    return f"/v1/images/{quote(ref, safe='')}"
