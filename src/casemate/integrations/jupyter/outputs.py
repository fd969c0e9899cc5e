"""What a cell does as Jupyter has it: outputs of a notebook (nbformat 4), and the contents of messages.

Nothing here needs nbformat. All of it comes from the guest, so its forms are checked here and its sizes bounded.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from casemate.sdk.code import Execution, Interrupted, Result

OWN = "application/vnd.casemate."  # tables and charts as data: the SDK's, and no front end's
STREAM_CHARS = 8 * 2**20  # of all streams of a cell; of more, the first and the last half
RESULTS_BYTES = 64 * 2**20  # of all results of a cell
ALL_BYTES = 256 * 2**20  # of all outputs of a notebook
SAME_DISPLAYS = 100  # outputs of one id that an update still reaches, the last ones
OUTPUT_BYTES = 512  # what one takes that holds nothing
PIECE_CHARS = 1024  # a shorter piece of a stream grows by the next one
PIECE_COST = 128  # counted beside its characters: two streams in turn, a letter each, are no way around the bounds
_JSON_TYPE = re.compile(r"application/(.*\+)?json")  # Source: nbformat.v4.5.schema.json, misc/mimebundle

Output = dict[str, Any]


def output_of(result: Result, count: int | None = None) -> Output:
    """*result* as ``execute_result`` of the cell *count* or as ``display_data``."""
    shown: Output = {"data": data_of(result), "metadata": _metadata_of(result)}
    if result.type == "result":
        return {"output_type": "execute_result", "execution_count": count, **shown}
    return {"output_type": "display_data", **shown}


def message_of(result: Result, count: int | None = None) -> tuple[str, dict[str, Any]]:
    """The type and the content of the message that shows it: an update is ``update_display_data``, what clears is
    ``clear_output``.
    """
    if result.clears is not None:
        return "clear_output", {"wait": result.clears == "next"}
    content = output_of(result, count)
    kind = str(content.pop("output_type"))
    if result.display_id is not None:
        content["transient"] = {"display_id": result.display_id}
    else:
        content["transient"] = {}
    if result.update:
        content.pop("execution_count", None)
        return "update_display_data", content
    return kind, content


def data_of(result: Result) -> dict[str, Any]:
    """Its MIME bundle: a text for each type but those of JSON."""
    return {
        mime: value if isinstance(value, str) or _JSON_TYPE.fullmatch(mime) else json.dumps(value)
        for mime, value in result.data.items()
        if not mime.startswith(OWN)
    }


def _metadata_of(result: Result) -> dict[str, Any]:
    metadata = dict(result.metadata) if isinstance(result.metadata, Mapping) else {}
    cut = {mime: size for mime, size in result.cut.items() if not mime.startswith(OWN)}
    return metadata | {"casemate": {"cut": cut}} if cut else metadata


def error_of(execution: Execution) -> Output | None:
    """How it failed, as an ``error`` output; None where it did not. An interrupt is Python's KeyboardInterrupt."""
    error = execution.error
    if error is None:
        return None
    name = "KeyboardInterrupt" if isinstance(execution.end, Interrupted) else error.name
    lines = (error.traceback or f"{name}: {error.value}").removesuffix("\n").split("\n")
    return {"output_type": "error", "ename": name, "evalue": error.value, "traceback": lines}


def count_of(execution: Execution) -> int | None:
    """The guest's count, where it is one."""
    count = execution.execution_count
    return count if type(count) is int and count >= 0 else None


def stream(name: str, text: str) -> Output:
    return {"output_type": "stream", "name": name, "text": text}


def text_decoder() -> codecs.IncrementalDecoder:
    """For one stream: UTF-8 in pieces of any size; what is none becomes U+FFFD."""
    return codecs.getincrementaldecoder("utf-8")("replace")


class Displays:
    """The outputs of a notebook that have a display's id, which any later cell may update; and the room left."""

    def __init__(self, limit_bytes: int = ALL_BYTES) -> None:
        self.room_bytes = limit_bytes
        self._by_id: dict[str, deque[Output]] = {}

    def add(self, display_id: str, output: Output) -> None:
        self._by_id.setdefault(display_id, deque(maxlen=SAME_DISPLAYS)).append(output)

    def update(self, display_id: str, output: Output) -> None:
        """Every output of this id shows what *output* does; nothing happens where there is none."""
        found = self._by_id.get(display_id)
        size = _size_of(output) if found else 0
        for known in found or ():
            grown = size - _size_of(known)
            if grown <= self.room_bytes:
                self.room_bytes -= grown
                known["data"], known["metadata"] = output["data"], output["metadata"]

    def forget(self, gone: Iterable[Output]) -> None:
        numbers = {id(output) for output in gone}
        for name, known in list(self._by_id.items()):
            kept = [output for output in known if id(output) not in numbers]
            self._by_id[name] = deque(kept, maxlen=SAME_DISPLAYS)


@dataclass(slots=True)
class _Text:
    name: str
    text: str


class Outputs:
    """A cell's outputs in the order they come; adjacent pieces of one stream become one output.

    ``stdout``, ``stderr`` and ``result`` are sinks for ``run_code``. Of streams the first and the last half of
    *stream_chars* are kept, of results the first RESULTS_BYTES, of both what *displays* have room for.
    """

    def __init__(
        self,
        displays: Displays | None = None,
        *,
        stream_chars: int = STREAM_CHARS,
        node: Callable[[Output], Output] = dict,
    ) -> None:
        """*node* makes of an output what is kept of it, as ``nbformat.from_dict`` does."""
        self._displays = displays or Displays()
        self._node = node
        self._half = min(stream_chars, self._displays.room_bytes) // 2
        self._decoders = {name: text_decoder() for name in ("stdout", "stderr")}
        self._clears_next = False
        self._begin()

    def _begin(self) -> None:
        self._head: list[Output | _Text] = []
        self._tail: deque[Output | _Text] = deque()
        self._head_chars = self._tail_chars = self._lost_chars = 0
        self._results_bytes = self._lost_results = 0

    def stdout(self, data: bytes) -> None:
        self._text("stdout", self._decoders["stdout"].decode(data))

    def stderr(self, data: bytes) -> None:
        self._text("stderr", self._decoders["stderr"].decode(data))

    def result(self, result: Result) -> None:
        """An update, or another display of the same id, shows wherever that id is shown."""
        if (clears := result.clears) is not None:
            self.clear(wait=clears == "next")
            return
        output = self._node(output_of(result))
        if result.display_id is not None:
            self._displays.update(result.display_id, output)
        if result.update:
            return
        self._clear_if_asked()
        size = _size_of(output)
        if size > min(RESULTS_BYTES - self._results_bytes, self._displays.room_bytes):
            self._lost_results += 1
            return
        self._results_bytes += size
        self._displays.room_bytes -= size
        if result.display_id is not None:
            self._displays.add(result.display_id, output)
        (self._tail if self._tail else self._head).append(output)

    def clear(self, *, wait: bool = False) -> None:
        """Forget all there is; with *wait* once there is something new, so that what is replaced does not flicker."""
        self._clears_next = wait
        if not wait:
            self._displays.room_bytes += self._results_bytes
            self._displays.forget(item for item in self._items() if isinstance(item, dict))
            self._begin()

    def _clear_if_asked(self) -> None:
        if self._clears_next:
            self.clear()

    def _text(self, name: str, text: str) -> None:
        if not text:
            return
        self._clear_if_asked()
        room = self._half - self._head_chars
        if room > 0 and not self._tail:
            self._head_chars += _add(self._head, name, text[:room])
            text = text[room:]
        if text:
            self._tail_chars += _add(self._tail, name, text)
            self._trim()

    def _trim(self) -> None:
        """The oldest pieces of the tail's text go; a result among them stays."""
        while self._tail_chars > self._half:
            oldest = self._tail[0]
            if isinstance(oldest, _Text):
                cost = len(oldest.text) + PIECE_COST
                if self._tail_chars - cost < self._half:
                    return  # whole pieces only: to shorten one for each letter that comes would take forever
                self._tail_chars -= cost
                self._lost_chars += len(oldest.text)
            else:
                self._head.append(oldest)
            self._tail.popleft()

    def _items(self) -> Iterator[Output | _Text]:
        yield from self._head
        if self._lost_chars:
            yield _Text("stderr", f"\n[casemate: {self._lost_chars} characters of output are left out here]\n")
        yield from self._tail

    def so_far(self, count: int | None = None) -> list[Output]:
        """As nbformat 4 has them; *count* is that of the cell."""
        outputs: list[Output] = []
        for name, items in groupby(self._items(), lambda item: item.name if isinstance(item, _Text) else None):
            if name is not None:
                text = "".join(item.text for item in items if isinstance(item, _Text))
                outputs.append(self._node(stream(name, text)))
                continue
            for item in items:
                assert not isinstance(item, _Text)
                if item["output_type"] == "execute_result":
                    item["execution_count"] = count
                outputs.append(item)
        return outputs

    def ended(self, execution: Execution) -> list[Output]:
        """All of it, with what was lost, and with the error it ended with."""
        for name, decoder in self._decoders.items():
            self._text(name, decoder.decode(b"", final=True))
        if lost := self._lost_results + execution.left_out.results:
            self._text("stderr", f"[casemate: {lost} results were too large or too many, and are left out]\n")
        outputs = self.so_far(count_of(execution))
        self._displays.room_bytes -= self._head_chars + self._tail_chars
        error = error_of(execution)
        return [*outputs, self._node(error)] if error is not None else outputs


def _add(items: list[Output | _Text] | deque[Output | _Text], name: str, text: str) -> int:
    """What it costs."""
    last = items[-1] if items else None
    if isinstance(last, _Text) and last.name == name and len(last.text) < PIECE_CHARS:
        last.text += text
        return len(text)
    items.append(_Text(name, text))
    return len(text) + PIECE_COST


def _size_of(output: Output) -> int:
    """About what it takes; exact for texts, which nearly all of a large one is."""
    texts = sum(len(value) if isinstance(value, str) else len(json.dumps(value)) for value in output["data"].values())
    return OUTPUT_BYTES + texts + len(json.dumps(output["metadata"]))
