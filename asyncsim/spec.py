"""What every named part of a scenario is: a frozen value, checked once, that says what was wrong.

A law, a policy, a problem and a method are each one class derived from `Spec`. The class is at once the object that
Python code makes, the table that a scenario file may hold, and its entry in the JSON Schema.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Floats = Annotated[tuple[float, ...], Field(strict=False)]
Ints = Annotated[tuple[int, ...], Field(strict=False)]


def refuse(message: str) -> PydanticCustomError:
    """Return the error that a validator raises: one sentence, said as it stands."""
    return PydanticCustomError("refused", "{message}", {"message": message})


def closest(name: str, allowed: list[str]) -> str:
    """Return " (did you mean 'x'?)" where one allowed name is close, else nothing."""
    near = difflib.get_close_matches(str(name), allowed, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


class Spec(BaseModel):
    """A frozen value with named fields; unknown fields, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=False,
        ser_json_inf_nan="constants",
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
                    raise refuse(f"unknown field '{key}'{closest(key, allowed)}; allowed: {', '.join(allowed)}")
        return data


def existing_file(value: Any, info: ValidationInfo) -> Any:
    """Find a file named in a scenario beside the scenario."""
    if isinstance(value, str | Path):
        folder = (info.context or {}).get("folder", ".")
        path = Path(folder, Path(value).expanduser())
        if not path.is_file():
            raise refuse(f"no such file: {value} (looked for {path})")
        return str(path.resolve())
    return value


#: A file that must exist; a relative name is looked up beside the scenario file.
File = Annotated[str, BeforeValidator(existing_file)]


@contextmanager
def _importable(folder: str) -> Any:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _load_user_object(path: str, arguments: dict[str, Any], tag: str, info: ValidationInfo) -> Any:
    """Import ``package.module:Object``, beside the scenario or installed, and call it with the other fields."""
    module_name, _, name = path.partition(":")
    folder = str(Path((info.context or {}).get("folder", ".")).resolve())
    try:
        with _importable(folder):
            factory = getattr(importlib.import_module(module_name), name)
            if isinstance(factory, type) and issubclass(factory, Spec):
                known = {**arguments, tag: path} if tag in factory.model_fields else arguments
                return factory.model_validate(known, context=info.context)
            value = factory(**arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        if type(error).__name__ == "ValidationError":
            raise
        raise refuse(f"cannot load '{path}': {error}") from error
    object.__setattr__(value, "_scenario_entry", {tag: path, **arguments})
    return value


def _entry(value: Any) -> Any:
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
        if not isinstance(value, Mapping):
            if isinstance(value, str | int | float | bool | list):
                raise refuse(f'must be a table such as {{ {tag} = "{next(iter(registry))}", … }}, got {value!r}')
            return value  # an object made in Python
        if tag not in value:
            raise refuse(f"missing field '{tag}'; allowed: {', '.join(registry)}")
        name = value[tag]
        if isinstance(name, str) and ":" in name:
            return _load_user_object(name, {k: v for k, v in value.items() if k != tag}, tag, info)
        if not isinstance(name, str) or name not in registry:
            raise refuse(
                f"unknown {what} {name!r}{closest(name, list(registry))}; allowed: {', '.join(registry)}, "
                "or your own as package.module:Object"
            )
        return registry[name].model_validate(dict(value), context=info.context)

    return choose


def named_field(tag: str, registry: Mapping[str, type[Spec]], what: str) -> Any:
    """Return the annotation of a field that holds one of the registered classes, or the user's own object.

    Use as ``Annotated[Law, *named_field("law", LAWS, "law")]``.
    """
    return (BeforeValidator(named(tag, registry, what)), PlainSerializer(_entry), NamedSchema(what))
