"""What every named part of a scenario is: a frozen value, checked once, that says what was wrong.

A law, a policy, a problem and a method are each one class derived from `Spec`. The class is at once the object that
Python code makes, the table that a scenario file may hold, and its entry in the JSON Schema.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
#: More of anything than this would not fit into memory.
Count = Annotated[int, Field(ge=1, le=100_000_000)]
Floats = Annotated[tuple[float, ...], Field(strict=False)]


def refuse(message: str, *where: str | int) -> ValueError:
    """Return the error that a validator raises: one sentence, said as it stands.

    `where` leads from the value that is validated to the one that is wrong, if that is a part of it.
    """
    error = PydanticCustomError("refused", "{message}", {"message": message})
    if not where:
        return error
    return ValidationError.from_exception_data("refused", [InitErrorDetails(type=error, loc=where, input=None)])


def closest(name: str, allowed: list[str]) -> str:
    """Return " (did you mean 'x'?)" where one allowed name is close, else nothing."""
    near = difflib.get_close_matches(str(name), allowed, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def shown(value: Any) -> str:
    """Return a value as an error says it: as TOML would, and not too long."""
    try:
        if isinstance(value, bool):
            return str(value).lower()
        text = str(value) if isinstance(value, date | time) else repr(value)
    except ValueError:  # Python does not spell out whole numbers of thousands of digits
        return "a very long number"
    return text if len(text) <= 60 else text[:57] + "…"


#: What pydantic's errors say in the words of a scenario file; the others say it well themselves.
SAID = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be finite",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "too_short": "must not have fewer than {min_length} entries",
    "too_long": "must not have more than {max_length} entries",
    "string_too_short": "must not be empty",
    "string_too_long": "must not have more than {max_length} characters",
    "union_tag_invalid": "must have {discriminator} one of {expected_tags}",
    "union_tag_not_found": "missing field {discriminator}",
}


def first_error(error: ValidationError, data: Any) -> str:
    """Return the first error of the validation of `data` as one sentence: where, what, which value."""
    details = error.errors(include_url=False)
    first, place = details[0], _place(details[0]["loc"], data)
    if len(place) < len(first["loc"]) and first["type"] != "missing":
        # One value may be of several types, and none of them takes it: say what is wrong in its innermost part.
        family = [detail for detail in details if _place(detail["loc"], data)[: len(place)] == place]
        place = max((_place(detail["loc"], data) for detail in family), key=len)
        details = [detail for detail in family if _place(detail["loc"], data) == place]
        # Where the type is right for one of them, what is wrong is not the type.
        details = [detail for detail in details if not detail["type"].endswith("_type")] or details
    else:
        details = [first]
    said = " or ".join(dict.fromkeys(map(_said, details))).replace(" or must be ", " or ")
    if details[0]["type"] not in ("refused", "value_error") and not said.startswith("missing"):
        said += f", got {shown(details[0]['input'])}"
    return f"{dotted(place)}: {said}" if place else said


def _place(location: Iterable[str | int], data: Any) -> tuple[str | int, ...]:
    """Return the part of an error's location that leads through the data; unions leave other marks in it."""
    place: list[str | int] = []
    for part in location:
        inside = part in data if isinstance(data, Mapping) else isinstance(data, list) and part in range(len(data))
        if inside:
            data = data[part]
            place.append(part)
    return tuple(place)


def _said(details: Any) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "missing" and isinstance(details["loc"][-1], str):
        return f"missing field '{details['loc'][-1]}'"
    if kind == "missing":
        return "has too few entries"
    if kind == "literal_error":
        allowed = re.findall("'(.*?)'", str(context["expected"]))
        return f"must be {context['expected']}{closest(str(details['input']), allowed)}"
    if kind in ("value_error", "assertion_error"):  # from a class of the user's
        return str(context["error"])
    return SAID[kind].format(**context) if kind in SAID else details["msg"].replace("Input should", "must")


def dotted(location: Iterable[str | int]) -> str:
    """Return ``cluster.workers[1].service`` for ("cluster", "workers", 1, "service")."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


class Spec(BaseModel):
    """A frozen value with named fields; unknown fields, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=False,
        ser_json_inf_nan="constants",
        defer_build=True,  # a class that is never used costs nothing; most are not, least of all in a worker process
    )

    def __eq__(self, other: object) -> bool:
        """Compare what was given, not what has been cached since."""
        return type(self) is type(other) and self._given() == other._given()

    def __hash__(self) -> int:
        """Return a hash that agrees with `==`."""
        return hash((type(self), repr(self)))

    def __getstate__(self) -> dict[Any, Any]:
        """Leave what has been cached behind when pickled or copied."""
        return {**super().__getstate__(), "__dict__": self._given()}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Any:
        """Return a checked copy with some fields changed."""
        return type(self).model_validate({**self._given(), **(update or {})})

    def _given(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in type(self).model_fields}

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        """Refuse an unknown field before anything else, and say which ones exist."""
        if isinstance(data, Mapping):
            allowed = list(cls.model_fields)
            for key in data:
                if key not in allowed:
                    have = ", ".join(allowed) or "none"
                    raise refuse(f"unknown field '{key}'{closest(key, allowed)}; allowed: {have}")
        return data


def existing_file(value: Any, info: ValidationInfo) -> Any:
    """Find a file named in a scenario beside the scenario."""
    if isinstance(value, str | Path):
        path = os.path.join(_folder(info), os.path.expanduser(value))
        if not os.path.isfile(path):
            raise refuse(f"no such file: {value}" + (f" (looked for {path})" if path != str(value) else ""))
        return os.path.realpath(path)
    return value


def _folder(info: ValidationInfo) -> str:
    """Return the folder of the scenario file; empty for the working directory."""
    folder = str((info.context or {}).get("folder", "."))
    return "" if folder == "." else folder


#: A file that must exist; a relative name is looked up beside the scenario file.
File = Annotated[str, BeforeValidator(existing_file)]


@contextmanager
def importable(folder: str) -> Any:
    """Let modules in a folder be imported for a while."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _load_user_object(path: str, arguments: dict[str, Any], tag: str, what: str, info: ValidationInfo) -> Any:
    """Import ``package.module:Object``, beside the scenario or installed, and call it with the other fields."""
    module_name, _, name = path.partition(":")
    folder = os.path.realpath(_folder(info))
    try:
        with importable(folder):
            module = importlib.import_module(module_name)
            _no_namesake(module, folder)
            factory = getattr(module, name)
            if isinstance(factory, type) and issubclass(factory, Spec):
                known = {**arguments, tag: path} if tag in factory.model_fields else arguments
                value = factory.model_validate(known, context=info.context)
            else:
                value = factory(**arguments)
            _usable(value, what)
            if not isinstance(value, Spec):
                object.__setattr__(value, "_scenario_entry", {tag: path, **arguments})
    except ValidationError:
        raise
    except Exception as error:  # a user's code fails as it likes
        plain = isinstance(error, ImportError | AttributeError | TypeError | ValueError)
        kind = "" if plain else f"{type(error).__name__}: "
        raise refuse(f"cannot load '{path}': {kind}{error}") from error
    return value


def _no_namesake(module: Any, folder: str) -> None:
    """Refuse a module of another folder that was imported before under the name of one in this folder."""
    beside = os.path.join(folder, *module.__name__.split(".")) + ".py"
    found = getattr(module, "__file__", None) or ""
    if os.path.isfile(beside) and not os.path.samefile(beside, found or folder):
        raise ImportError(f"another module of that name is in use already, {found}; rename {beside}")


#: What an object that is not made by asyncsim must have. (Problems and methods get defaults for the rest.)
NEEDED = {
    "law": ("mean", "variance", "quantile", "table", "sample"),
    "staleness": ("mean", "sequence"),
    "policy": ("gradients_per_update", "staleness_limit", "goes_on", "sends_to", "cancels", "check"),
    "problem": ("dimension", "value", "gradient"),
    "method": ("init", "message", "apply"),
    "projection": ("__call__",),
    "compressor": ("check", "encode", "decode", "nbytes", "contraction", "linear"),
}


def _usable(value: Any, what: str) -> None:
    """Refuse an object that cannot be what it is given for."""
    lacking = [name for name in NEEDED[what] if not hasattr(value, name)]
    if lacking:
        kind = type(value).__name__
        raise refuse(f"a {what} needs {', '.join(NEEDED[what])}; this object ({kind}) lacks {', '.join(lacking)}")


def entry(value: Any) -> Any:
    """Return a named part of a scenario as plain data."""
    return value.model_dump(mode="json") if isinstance(value, Spec) else getattr(value, "_scenario_entry", repr(value))


class NamedSchema:
    """Marks a named choice in the JSON Schema; `asyncsim.schema` puts the choice there, defined once per registry."""

    def __init__(self, what: str):
        self.what = what

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"choice": self.what}


def named(tag: str, registry: Mapping[str, type[Spec]], what: str) -> Callable[[Any, ValidationInfo], Any]:
    """Return the validator that turns ``{tag = "name", …}`` into the registered class of that name."""

    def choose(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str | int | float | list):
            raise refuse(f'must be a table such as {{ {tag} = "{next(iter(registry))}", … }}, got {shown(value)}')
        if not isinstance(value, Mapping):  # an object made in Python
            if type(value) not in registry.values():
                _usable(value, what)
            return value
        if tag not in value:
            raise refuse(f"missing field '{tag}'; allowed: {', '.join(registry)}")
        name = value[tag]
        if isinstance(name, str) and ":" in name:
            return _load_user_object(name, {k: v for k, v in value.items() if k != tag}, tag, what, info)
        if not isinstance(name, str) or name not in registry:
            raise refuse(
                f"unknown {what} {shown(name)}{closest(name, list(registry))}; allowed: {', '.join(registry)}, "
                "or your own as package.module:Object"
            )
        return registry[name].model_validate(dict(value), context=info.context)

    return choose


def named_field(tag: str, registry: Mapping[str, type[Spec]], what: str) -> Any:
    """Return the annotation of a field that holds one of the registered classes, or the user's own object.

    Use as ``Annotated[Law, *named_field("law", LAWS, "law")]``.
    """
    return (BeforeValidator(named(tag, registry, what)), PlainSerializer(entry), NamedSchema(what))
