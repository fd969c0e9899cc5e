"""The facts of Firecracker's own API description, as a table that the tests hold our calls against.

    git -C FIRECRACKER show v1.15.1:src/firecracker/swagger/firecracker.yaml > firecracker.yaml
    python tools/firecracker_api.py firecracker.yaml     # writes tests/unit/vmm/firecracker_api_1.15.1.json

Paths, methods, field names, types, bounds and what is required; none of its prose. Needs PyYAML (the extra ``dev``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

TABLES = Path(__file__).resolve().parents[1] / "tests" / "unit" / "vmm"
KEPT = ("$ref", "type", "enum", "minimum", "maximum", "required", "items", "properties", "additionalProperties")
METHODS = ("get", "put", "patch")


Loader: Any = type("Loader", (yaml.SafeLoader,), {})  # ``Off`` is a word there: only true and false are truth values
Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:bool" or first in "tf"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    spec = yaml.load(Path(arguments[0]).read_text(), Loader)
    version = spec["info"]["version"]
    found = {
        "version": version,
        "paths": {
            path: {method.upper(): operation(said[method]) for method in METHODS if method in said}
            for path, said in spec["paths"].items()
        },
        "definitions": {name: schema(said) for name, said in spec["definitions"].items()},
    }
    target = TABLES / f"firecracker_api_{version}.json"
    target.write_text(written(found))
    print(target)
    return 0


def operation(said: dict[str, Any]) -> dict[str, Any]:
    """What its body is and what each status answers; None where that is nothing."""
    bodies = [schema(one["schema"]) for one in said.get("parameters", ()) if one["in"] == "body"]
    answers = {
        str(status): schema(answer["schema"]) if "schema" in answer else None
        for status, answer in said["responses"].items()
    }
    return {"body": bodies[0] if bodies else None, "answers": answers}


def schema(said: dict[str, Any]) -> dict[str, Any]:
    """Of one type, without its prose."""
    kept = {key: said[key] for key in KEPT if key in said}
    if "properties" in kept:
        kept["properties"] = {name: schema(one) for name, one in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = schema(kept["items"])
    return kept


def written(found: dict[str, Any]) -> str:
    """A line for each path and each type, so that two versions can be compared by eye."""
    parts = [f' "version": {json.dumps(found["version"])}']
    for part in ("paths", "definitions"):
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found[part][name])}" for name in sorted(found[part]))
        parts.append(f' "{part}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
