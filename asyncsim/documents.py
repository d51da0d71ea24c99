"""Scenario files as plain data: TOML, inheritance by `extends`, values set at dotted paths. Nothing is checked here."""

from __future__ import annotations

import copy
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncsim.spec import shown


class ScenarioError(ValueError):
    """Bad input: one sentence, on one line, that names the file, the key, the value and what is allowed."""

    def __init__(self, sentence: str):
        line = " ".join(sentence.split())
        super().__init__("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line))


def read(path: str | Path, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the plain data of a scenario file, `extends` and `overrides` (dotted paths to values) resolved."""
    data = _read(Path(path))
    for key, value in (overrides or {}).items():
        try:
            set_path(data, key, value)
        except KeyError as error:
            raise ScenarioError(f"{path}: cannot set '{key}': {error.args[0]}") from None
    return data


def _read(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file") from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ScenarioError(f"{path}: not valid TOML: nested too deep") from None
    except ValueError as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}") from None
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ScenarioError(f"{path}: extends: must be the name of a scenario file, got {shown(base)}")
    target = path.parent / base
    if not os.path.isfile(target):
        raise ScenarioError(f"{path}: extends: no such file: {base}")
    family = (*extended_by, path.resolve())
    if target.resolve() in family:
        raise ScenarioError(f"{path}: extends: '{base}' leads back to itself")
    return _merge(_read(target, family), data)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it; a table that names another kind or law replaces the whole table."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_choice(old, value):
            merged[key] = _merge(dict(old), value)
        else:
            merged[key] = value
    return merged


def _same_choice(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(new.get(tag, old.get(tag)) == old.get(tag) for tag in ("kind", "law", "set"))


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path (array items by index); raise KeyError with a sentence where it cannot be.

    >>> data = {"cluster": {"workers": [{"count": 4}]}}
    >>> set_path(data, "cluster.workers.0.count", 16)
    >>> data
    {'cluster': {'workers': [{'count': 16}]}}
    """
    *parents, last = path.split(".")
    place: Any = data
    for depth, part in enumerate([*parents, last]):
        final = depth == len(parents)
        if isinstance(place, list):
            if not re.fullmatch("[0-9]+", part) or int(part) >= len(place):
                raise KeyError(f"'{part}' is not an index of a list of {len(place)}")
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
            if not final:
                place.setdefault(key, {})
        else:
            raise KeyError(f"'{part}' lies inside a plain value")
        if final:
            place[key] = copy.deepcopy(value)
        else:
            place = place[key]


def parse_value(text: str) -> Any:
    """Return the TOML value that a text spells, or the text itself: 3, 0.5, true, [1, 2], { law = "constant", … }.

    >>> parse_value("[1, 2.5]"), parse_value("async")
    ([1, 2.5], 'async')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
