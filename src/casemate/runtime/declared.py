"""Figures that are data already, plotly's and altair's: shown as their own JSON, which their scripts draw anywhere."""

import json
import sys
from typing import Any, Callable, Dict

PLOTLY = "application/vnd.plotly.v1+json"
VEGALITE = "application/vnd.vegalite.v%s+json"


def is_plotly(value: Any) -> bool:
    module = sys.modules.get("plotly.basedatatypes")
    return module is not None and isinstance(value, module.BaseFigure)


def is_altair(value: Any) -> bool:
    kind = getattr(sys.modules.get("altair"), "TopLevelMixin", None)
    return kind is not None and isinstance(value, kind)


def as_plotly(value: Any) -> Any:
    """By plotly's own encoder, which knows numpy's and pandas' values."""
    return json.loads(value.to_json())


def as_vegalite(value: Any) -> Dict[str, Any]:
    """The MIME type, by the version of the language, and the specification."""
    made = value.to_dict()
    version = str(made.get("$schema", "")).rpartition("/v")[2].partition(".")[0]
    return {VEGALITE % (version if version.isdigit() else "5"): made}


def take_over(display: Callable[[Any], None]) -> Callable[[Any], None]:
    """What to do with `plotly.io` when it is imported: its `show`, which looks for a browser, displays here."""

    def adapt(module: Any) -> None:
        def show(figure: Any, *args: Any, **kwargs: Any) -> None:
            """Display the figure."""
            display(sys.modules["plotly.graph_objects"].Figure(figure) if isinstance(figure, dict) else figure)

        module.show = show

    return adapt
