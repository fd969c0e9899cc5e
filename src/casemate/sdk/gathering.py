"""The events of a cell, gathered into an Execution within a bound of memory."""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from typing import Any

from casemate.sdk.code import Execution, FileChange, LeftOut, Result, end_from_json, error_of
from casemate.sdk.results import Logs
from casemate.sdk.streams import MAX_OUTPUT_BYTES, Kept

MAX_RESULTS_BYTES = 64 * 2**20
RESULT_BYTES = 1024  # what one takes that holds nothing


class Gathered:
    """Of each stream the first and the last half of *max_output_bytes* are kept; of results the first 64 MiB."""

    def __init__(self, first: Mapping[str, Any], max_output_bytes: int = MAX_OUTPUT_BYTES) -> None:
        """*first*: the event that says which cell it is."""
        self.cell_id, self.context = str(first["cell_id"]), str(first["context"])
        self._kept = {"stdout": Kept(max_output_bytes), "stderr": Kept(max_output_bytes)}
        self._results: list[Result] = []
        self._sizes: list[int] = []
        self._held_bytes = 0
        self._dropped_bytes = 0
        self._clears_next = False

    def output(self, event: Mapping[str, Any]) -> bytes:
        self._clear_if_asked()
        data = binascii.a2b_base64(event["data"])
        self._kept[event["event"]].add(data)
        return data

    def result(self, event: Mapping[str, Any]) -> Result:
        """An update takes the place of what it updates; one that clears, those before it away."""
        body = event["result"]
        result, size = Result.from_json(body), _size_of(body)
        if (clears := result.clears) is not None:
            self._clears_next = True
            if clears == "now":
                self._clear_if_asked()
            return result
        if result.update and result.display_id is not None:
            known = [n for n, found in enumerate(self._results) if found.display_id == result.display_id]
            if known:
                for at in known:
                    self._replace(at, result, size)
                return result
        self._clear_if_asked()
        if self._held_bytes + size > MAX_RESULTS_BYTES:
            self._dropped_bytes += size
        else:
            self._held_bytes += size
            self._results.append(result)
            self._sizes.append(size)
        return result

    def _clear_if_asked(self) -> None:
        if self._clears_next:
            self._results, self._sizes, self._held_bytes = [], [], 0
            self._clears_next = False

    def _replace(self, at: int, result: Result, size: int) -> None:
        """What there is no room for leaves what was there before."""
        if self._held_bytes + size - self._sizes[at] > MAX_RESULTS_BYTES:
            self._dropped_bytes += size
            return
        self._held_bytes += size - self._sizes[at]
        self._results[at], self._sizes[at] = result, size

    def gap(self, event: Mapping[str, Any]) -> None:
        self._dropped_bytes += int(event["to"]) - int(event["from"])

    def ended(self, event: Mapping[str, Any]) -> Execution:
        end = end_from_json(event["end"])
        stdout, stderr = (self._kept[stream] for stream in ("stdout", "stderr"))
        left_out = event.get("left_out") or {}
        return Execution(
            results=tuple(self._results),
            logs=Logs(stdout.value().decode(errors="replace"), stderr.value().decode(errors="replace")),
            error=error_of(end),
            end=end,
            execution_count=event.get("execution_count"),
            duration_ms=float(event["duration_ms"]),
            files_changed=tuple(FileChange(f["path"], f["change"]) for f in event.get("files_changed") or ()),
            cell_id=self.cell_id,
            context=self.context,
            truncated_bytes=stdout.dropped_bytes + stderr.dropped_bytes + self._dropped_bytes,
            offset=int(event.get("offset") or 0),
            files_cut=int(event.get("files_cut") or 0),
            left_out=LeftOut(int(left_out.get("results") or 0), int(left_out.get("result_bytes") or 0)),
        )


def _size_of(body: Mapping[str, Any]) -> int:
    """About what it takes; exact for texts, which nearly all of a large one is."""
    data = body.get("data") or {}
    texts = sum(len(value) if isinstance(value, str) else len(json.dumps(value)) for value in data.values())
    return RESULT_BYTES + texts + len(json.dumps(body.get("metadata") or {})) + len(json.dumps(body.get("cut") or {}))
