"""Objectives and data: what a method is run on.

Every problem is a frozen value with the functions of `Problem`. An object of your own with the same functions serves
as well, in Python or by the name ``package.module:Object`` in a scenario.
"""

from __future__ import annotations

from typing import Annotated, Any

from asyncsim.problems.base import Problem
from asyncsim.problems.least_squares import LeastSquares
from asyncsim.problems.logistic import Logistic
from asyncsim.problems.online import Online
from asyncsim.problems.pl_example import PLExample
from asyncsim.problems.quadratic import Quadratic
from asyncsim.problems.softmax import Softmax
from asyncsim.spec import Spec, named_field

#: Every problem by the name that a scenario file uses.
PROBLEMS: dict[str, type[Spec]] = {
    "quadratic": Quadratic,
    "least_squares": LeastSquares,
    "softmax": Softmax,
    "logistic": Logistic,
    "pl_example": PLExample,
    "online": Online,
}

AnyProblem = Annotated[Any, *named_field("kind", PROBLEMS, "problem")]

__all__ = [
    "PROBLEMS",
    "AnyProblem",
    "LeastSquares",
    "Logistic",
    "Online",
    "PLExample",
    "Problem",
    "Quadratic",
    "Softmax",
]
