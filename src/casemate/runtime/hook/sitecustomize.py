"""The door into the zygote: CPython imports this while it starts, before it opens its script.

The zygote serves from inside this import. A child that has been given its job *returns* from it, and
CPython goes on to run "its script" as it always does, with no frame of ours beneath. See program.py.
"""

import importlib
import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = "_casemate_runtime"

sys.path.remove(_HERE)  # it is on PYTHONPATH for this one import
sys.path_importer_cache.pop(_HERE, None)
_door = sys.modules.pop("sitecustomize")
try:
    importlib.import_module("sitecustomize")  # the image's own, if it has one
except ImportError as _error:
    if _error.name != "sitecustomize":
        raise
_real = sys.modules.get("sitecustomize")
sys.modules["sitecustomize"] = _door

_root = os.path.dirname(_HERE)
_spec = importlib.util.spec_from_file_location(
    _PACKAGE, os.path.join(_root, "__init__.py"), submodule_search_locations=[_root]
)
assert _spec is not None
assert _spec.loader is not None
_package = importlib.util.module_from_spec(_spec)
sys.modules[_PACKAGE] = _package
_spec.loader.exec_module(_package)
importlib.import_module(_PACKAGE + ".zygote").main()  # returns in a child only

if _real is None:
    raise ImportError("no sitecustomize", name="sitecustomize")  # what site expects of an image without one
sys.modules["sitecustomize"] = _real
