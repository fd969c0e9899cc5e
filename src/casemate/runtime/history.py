"""What a context remembers of its cells, under the names that IPython gives them: In, Out, _, __, ___, _3, _i, _i3."""

from typing import Any, Dict, List, MutableMapping

_OUTPUTS_KEPT = 1000
_UNDERSCORES = ("_", "__", "___")


class History:
    """Writes into the user's *names*. *hidden* are those that `%who` does not show, *raw* is In before any magic."""

    def __init__(self, names: Dict[str, Any], hidden: MutableMapping[str, Any], raw: List[str]) -> None:
        self._names, self._hidden, self._raw = names, hidden, raw
        self.inputs: List[str] = names.setdefault("In", [""])
        self.outputs: Dict[int, Any] = names.setdefault("Out", {})
        self._last: List[Any] = ["", "", ""]
        self._put(dict.fromkeys((*_UNDERSCORES, "_i", "_ii", "_iii"), ""))

    def add_input(self, number: int, code: str) -> None:
        for inputs in (self.inputs, self._raw):
            while len(inputs) < number:
                inputs.append("")  # the user has removed some
            inputs.append(code)
        self._put({"_i%d" % number: code, **dict(zip(("_i", "_ii", "_iii"), reversed(self.inputs[-4:-1])))})

    def add_output(self, number: int, value: Any) -> None:
        if value is self.outputs:
            return
        if len(self.outputs) >= _OUTPUTS_KEPT:
            self._forget_oldest()
        names = self._names
        untouched = all(name not in names or names[name] is mine for name, mine in zip(_UNDERSCORES, self._last))
        self._last = [value, *self._last[:2]]
        if untouched:  # or the user has a _ of his own
            self._put(dict(zip(_UNDERSCORES, self._last)))
        self._put({"_%d" % number: value})
        self.outputs[number] = value

    def _forget_oldest(self) -> None:
        for number in list(self.outputs)[: _OUTPUTS_KEPT // 5]:
            value = self.outputs.pop(number)
            name = "_%s" % number
            if self._names.get(name) is value:
                del self._names[name]

    def _put(self, names: Dict[str, Any]) -> None:
        self._names.update(names)
        self._hidden.update(names)
