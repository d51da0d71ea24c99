"""The JSON Schema of scenario files, derived from the classes that check them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from asyncsim.compressors import COMPRESSORS
from asyncsim.durations import LAWS
from asyncsim.methods import METHODS
from asyncsim.methods.projections import PROJECTIONS
from asyncsim.policies import POLICIES
from asyncsim.problems import PROBLEMS
from asyncsim.scenario import Scenario
from asyncsim.spec import Spec
from asyncsim.staleness_laws import STALENESS_LAWS

#: Each named choice: the name of its definition, the field that chooses, and what there is to choose from.
CHOICES: dict[str, tuple[str, Mapping[str, type[Spec]]]] = {
    "law": ("law", LAWS),
    "policy": ("kind", POLICIES),
    "problem": ("kind", PROBLEMS),
    "method": ("kind", METHODS),
    "projection": ("set", PROJECTIONS),
    "staleness": ("law", STALENESS_LAWS),
    "compressor": ("kind", COMPRESSORS),
}


def scenario_schema() -> dict[str, Any]:
    """Return the JSON Schema: editors with a TOML plugin complete and check scenario files with it."""
    schema = _schema_of(Scenario)
    definitions = schema.setdefault("$defs", {})
    for what, (tag, registry) in CHOICES.items():
        choices = [_choice(name, tag, kind, definitions) for name, kind in registry.items()]
        own = {
            "type": "object",
            "title": "your own, as package.module:Object",
            "properties": {tag: {"type": "string", "pattern": r"^[\w.]+:\w+$"}},
            "required": [tag],
        }
        definitions[what] = {"anyOf": [*choices, own]}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "asyncsim scenario"
    schema["properties"]["extends"] = {"type": "string", "description": "a scenario file to start from"}
    # In a file the axes stand in [sweep] itself, beside zip, exclude, tune, search, by and timeout.
    sweep = definitions["Sweep"]
    del sweep["properties"]["grid"]
    sweep["additionalProperties"] = {"description": "an axis: a list of values, or { start, stop, num }"}
    return _with_references(schema)


def _schema_of(kind: type[Spec]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # defaults that are objects have no JSON form, and need none
        return kind.model_json_schema(mode="validation")


def _choice(name: str, tag: str, kind: type[Spec], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the table of one named class, its name required."""
    schema = _schema_of(kind)
    definitions |= schema.pop("$defs", {})
    schema["properties"] = {tag: {"const": name}, **{k: v for k, v in schema["properties"].items() if k != tag}}
    schema["required"] = [tag, *(field for field in schema.get("required", []) if field != tag)]
    return schema


def _with_references(node: Any) -> Any:
    """Replace the mark of every named choice by a reference to its definition."""
    if isinstance(node, Mapping):
        if "choice" in node:
            rest = {key: value for key, value in node.items() if key != "choice"}
            return {**rest, "$ref": f"#/$defs/{node['choice']}"}
        return {key: _with_references(value) for key, value in node.items()}
    return [_with_references(item) for item in node] if isinstance(node, list) else node
