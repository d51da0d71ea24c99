"""What a user's own object has, and the defaults of a base class for what it leaves out."""

from __future__ import annotations

from typing import Any


class Completed:
    """An object that does not derive from `defaults`, with the functions of that class behind its own.

    It runs one replica at a time unless it says ``batched = True``. `what` names its kind in errors.
    """

    def __init__(self, own: Any, defaults: type, what: str):
        self._own, self._defaults, self._what = own, defaults, what
        self.batched = getattr(own, "batched", False)

    def __getattr__(self, name: str) -> Any:
        """Return the object's own attribute, else the default, bound to the whole where it is a function."""
        if name.startswith("_"):
            raise AttributeError(name)
        if hasattr(self._own, name):
            return getattr(self._own, name)
        if name not in vars(self._defaults):
            kind = type(self._own).__name__
            raise AttributeError(f"{kind} has no '{name}', and a {self._what} has no default for it")
        default = vars(self._defaults)[name]
        return default.__get__(self) if hasattr(default, "__get__") else default
