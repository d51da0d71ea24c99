"""Methods: what workers send and how the server turns it into updates. One file per family."""

from __future__ import annotations

from typing import Annotated, Any

from asyncsim.methods.base import Method, State
from asyncsim.methods.projections import PROJECTIONS, AnyProjection, Ball, Box, NonNegativeOrthant, Projection, Simplex
from asyncsim.methods.sgd import SGD
from asyncsim.methods.steps import STEP_RULES, StepRule
from asyncsim.spec import Spec, named_field

#: Every method by the name that a scenario file uses.
METHODS: dict[str, type[Spec]] = {"sgd": SGD}

AnyMethod = Annotated[Any, *named_field("kind", METHODS, "method")]

__all__ = [
    "METHODS",
    "PROJECTIONS",
    "SGD",
    "STEP_RULES",
    "AnyMethod",
    "AnyProjection",
    "Ball",
    "Box",
    "Method",
    "NonNegativeOrthant",
    "Projection",
    "Simplex",
    "State",
    "StepRule",
]
