"""The best value of one number of the method, searched for each cell of a sweep on the cell's own schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from asyncsim.documents import ScenarioError, set_path
from asyncsim.experiment import replayed
from asyncsim.replay import plan_of
from asyncsim.runs import Run
from asyncsim.scenario import Scenario, Search, build
from asyncsim.summary import final_values, first_passage, run_estimates

if TYPE_CHECKING:
    from asyncsim.trace import Trace

#: Relative width of the interval that a search ends with.
PRECISION = 2e-3


def best_value(scenario: Scenario, search: Search, by: str, trace: Trace) -> float:
    """Return the value of `search.path`, between `low` and `high`, at which the number named `by` is least.

    Every value is tried on the same trace, so that what differs is the method and not the schedule. The number must
    first fall and then rise with the value, as it does with a step: golden sections then find the bottom.
    """

    plan = plan_of(trace, scenario.method, scenario.problem)

    def number(position: float) -> float:
        moved = with_value(scenario, search.path, float(np.exp(position)))
        return score(moved, replayed(moved, trace, plan=plan), by)

    return float(np.exp(least(number, np.log(search.low), np.log(search.high), PRECISION)))


def with_value(scenario: Scenario, path: str, value: float, *, name: str = "sweep.search") -> Scenario:
    """Return the scenario with another value at a dotted path; `name` stands in errors."""
    data = scenario.resolved()
    set_path(data, path, value)
    return build(data, name=f"{name} ({path} = {value:g})", folder=scenario.folder)


def check_search(scenario: Scenario, search: Search, *, name: str) -> None:
    """Refuse a search whose values are no scenarios, or whose schedules would depend on them."""
    for value in (search.low, search.high):
        with_value(scenario, search.path, value, name=f"{name}: sweep.search")
    if scenario.run.stop_when is not None or getattr(scenario.method, "makes_requests", False):
        raise ScenarioError(f"{name}: sweep.search: needs a schedule that no value changes: leave out run.stop_when")


def least(function: Callable[[float], float], low: float, high: float, precision: float) -> float:
    """Return where a function that falls and then rises is least, by golden sections; where it is infinite, it rises.

    >>> round(least(lambda x: abs(x - 0.3), 0.0, 1.0, 1e-6), 5)
    0.3
    """
    ratio = (5.0**0.5 - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > precision:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return left if at_left <= at_right else right


def score(scenario: Scenario, run: Run, by: str) -> float:
    """Return the mean, over the replicas that choose, of the number to judge by; infinite where it is not known."""
    if run.diverged:
        return np.inf
    if by == "rate":
        fit = run_estimates(scenario, run)["rate"]
        return np.inf if "refused" in fit else float(fit["rate"])
    if by in ("time_to_target", "updates_to_target"):
        updates, times = first_passage(run, str(scenario.metrics.target))
        values = times if by == "time_to_target" else updates
    else:
        values = final_values(run)[by]
    return float(values[shares(values.size, by)[0]].mean()) if np.isfinite(values).all() else np.inf


def shares(replicas: int, by: str) -> tuple[slice, slice]:
    """Return which replicas choose the best value, and which report how good it is.

    The least of several noisy means is too small a mean; so, from four replicas on, every other one chooses, and the
    others report. A rate is one number of all replicas.
    """
    if by == "rate":
        return slice(1), slice(1)
    return (slice(0, None, 2), slice(1, None, 2)) if replicas >= 4 else (slice(None), slice(None))
