"""`display` where there is no IPython."""

import os
from typing import Any, Callable, Dict, Optional

Publish = Callable[..., None]
CLEAR = "application/vnd.casemate.clear+json"


def clearing(wait: bool) -> Dict[str, Any]:
    """`clear_output` as a display of its own: what the cell has shown so far goes, with *wait* when the next comes."""
    return {"type": "display", "data": {CLEAR: {"wait": bool(wait)}}}


class DisplayHandle:
    """What was displayed, to be displayed anew in its place."""

    def __init__(self, display: Callable[..., Any], display_id: str) -> None:
        self._display, self.display_id = display, display_id

    def display(self, value: Any, **more: Any) -> None:
        self._display(value, display_id=self.display_id, **more)

    def update(self, value: Any, **more: Any) -> None:
        self._display(value, display_id=self.display_id, update=True, **more)


def make_display(show: Callable[[Any, Dict[str, Any]], None]) -> Callable[..., Optional[DisplayHandle]]:
    """*show* gets each object and what there is to say beside its data."""

    def display(
        *values: Any,
        raw: bool = False,
        metadata: Optional[Dict[str, Any]] = None,
        display_id: Any = None,
        update: bool = False,
        **kwargs: Any,
    ) -> Optional[DisplayHandle]:
        """Show each object as what it looks like best; *raw*: it is a MIME bundle. True as *display_id* makes one."""
        name = os.urandom(16).hex() if display_id is True else display_id
        for value in values:
            more = {"type": "display", "metadata": metadata, "display_id": name, "update": update}
            show(value, {**more, "data": value} if raw else more)
        return DisplayHandle(display, name) if name is not None else None

    return display
