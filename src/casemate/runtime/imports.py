"""Acts on a module as soon as it is imported, or now if it is already."""

import importlib.util
import sys
from typing import Any, Callable, Dict, List

Act = Callable[[Any], None]


class _Watcher:
    """A finder that lets the others find a module, and acts when they have run it."""

    def __init__(self) -> None:
        self.acts: Dict[str, List[Act]] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        acts = self.acts.pop(name, None)
        if acts is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            self.acts[name] = acts
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            try:
                run(module)
            except BaseException:
                self.acts[name] = acts
                raise
            for act in acts:
                act(module)

        loader.exec_module = exec_module
        return spec


_watcher = _Watcher()


def when_imported(name: str, act: Act) -> None:
    module = sys.modules.get(name)
    if module is not None:
        return act(module)
    if _watcher not in sys.meta_path:
        sys.meta_path.insert(0, _watcher)
    _watcher.acts.setdefault(name, []).append(act)
    return None
