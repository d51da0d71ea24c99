"""The best values of a sweep: of the tuned paths among the cells, and of one number searched inside every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncsim.documents import ScenarioError, set_path
from asyncsim.experiment import replayed
from asyncsim.prediction import best_momenta
from asyncsim.replay import plan_of
from asyncsim.runs import Run
from asyncsim.scenario import Scenario, Search, Sweep, build
from asyncsim.summary import final_values, first_passage, run_estimates

if TYPE_CHECKING:
    from asyncsim.trace import Trace

# --- the best value inside a cell ---

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


# --- the best among the cells ---


def best_cells(frame: Any, sweep: Sweep, cells: Iterable[tuple[dict[str, Any], Scenario]]) -> Any:
    """Return `tuned` of a sweep's results, with the searched values and theory's momenta where there are any.

    `cells` are the swept values, as the results show them, and the scenario of each cell.
    """
    best = tuned(frame, sweep.tune or (), str(sweep.by))
    if sweep.search is not None:
        best = _with_searched(best, frame, sweep)
    return _with_theory(best, cells, sweep)


def tuned(frame: Any, paths: str | tuple[str, ...], by: str) -> Any:
    """Return each combination's best value of the tuned paths, its differences to the first combination's paired.

    For every combination of the other swept values, the cell with the smallest mean of `by` among those in which no
    replica diverged (or missed the target). The least of several noisy means is too small a mean, and the more so the
    more values were tried. So, from four replicas on, every other replica chooses the best value and the others say
    how good it is: `mean`, its 95 % interval (`low`, `high`), and the paired `difference` to the first combination that
    has a best value, with its 95 % interval. Only a difference whose interval leaves out 0 has been found, and of
    twenty such intervals one is expected to miss the truth. A rate is one number of all replicas: no interval.
    `at_edge` says whether the best lies at an end of the tuned grid, where a better one may lie outside.

    >>> import pandas as pd
    >>> cells = {("sgd", 0.1): [5, 1, 5, 1], ("sgd", 0.2): [4, 2, 4, 2], ("other", 0.1): [3, 1, 3, 5]}
    >>> rows = [(*cell, r, x, False) for cell, values in cells.items() for r, x in enumerate(values)]
    >>> frame = pd.DataFrame(rows, columns=["method", "step", "replica", "loss", "diverged"])
    >>> tuned(frame, "step", "loss")[["method", "step", "mean", "difference"]].values.tolist()
    [['sgd', 0.2, 2.0, 0.0], ['other', 0.1, 3.0, 1.0]]
    """
    import pandas as pd

    paths = (paths,) if isinstance(paths, str) else paths
    swept = list(frame.columns[: list(frame.columns).index("replica")])
    others = [path for path in swept if path not in paths]
    rows = []
    reference = None
    groups = frame.groupby(others, sort=False, dropna=False) if others else [((), frame)]
    for combination, group in groups:
        scores = {}
        for point, cell in group.groupby(list(paths), sort=False):
            nothing = pd.Series(np.nan, cell.index)  # where every cell of a run's metric was refused there is no column
            values = cell.sort_values("replica").get(by, nothing).to_numpy(dtype=float)
            usable = not cell["diverged"].any() and np.isfinite(values).all()
            if usable and not cell.get(f"{by}_refused", pd.Series([False])).any():
                scores[point] = values
        row = dict(zip(others, combination if isinstance(combination, tuple) else (combination,), strict=True))
        if not scores:
            rows.append({**row, **dict.fromkeys(paths), **dict.fromkeys(NUMBERS, np.nan), "at_edge": False})
            continue
        chosen_on, reported_on = shares(next(iter(scores.values())).size, by)
        best = min(scores, key=lambda point: float(scores[point][chosen_on].mean()))
        values = scores[best][reported_on]
        reference = values if reference is None else reference
        comparable = by != "rate" and reference.size == values.size
        paired = _interval(values - reference) if comparable else (np.nan,) * 3
        row |= dict(zip(paths, best, strict=True))
        row |= dict(zip(NUMBERS, (*_interval(values), *paired), strict=True))
        row["at_edge"] = any(_at_edge(value, group[path]) for value, path in zip(best, paths, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


#: What `tuned` says of each best value.
NUMBERS = ("mean", "low", "high", "difference", "difference_low", "difference_high")


def _at_edge(value: Any, tried: Any) -> bool:
    """Say whether a number is the smallest or the largest of several; words have no order."""
    numbers = tried.unique().tolist()
    ordered = len(numbers) > 1 and all(isinstance(number, int | float) for number in numbers)
    return ordered and value in (min(numbers), max(numbers))


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t; no interval from one replica."""
    from scipy.stats import t as student

    mean = float(values.mean())
    if values.size < 2:
        return mean, np.nan, np.nan
    half = float(student.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return mean, mean - half, mean + half


def _with_searched(best: Any, frame: Any, sweep: Sweep) -> Any:
    """Add the searched value of each best cell; one at an end of its range is at an edge too."""
    search = sweep.search
    assert search is not None
    rows = frame[[*sweep.paths, search.path]].itertuples(index=False, name=None)
    found = {tuple(combination): value for *combination, value in rows}
    points = best[sweep.paths].itertuples(index=False, name=None)
    best = best.assign(**{search.path: [found.get(point, np.nan) for point in points]})
    outside = (best[search.path] < 1.01 * search.low) | (best[search.path] > search.high / 1.01)
    return best.assign(at_edge=best["at_edge"].astype(bool) | outside)


def _with_theory(best: Any, cells: Iterable[tuple[dict[str, Any], Scenario]], sweep: Sweep) -> Any:
    """Add the best explicit momenta of theory where the momentum was tuned and theory knows them."""
    chosen = (sweep.tune,) if isinstance(sweep.tune, str) else sweep.tune or ()
    if "method.momentum" not in chosen:
        return best
    others = [path for path in sweep.paths if path not in chosen]
    known: dict[tuple[Any, ...], dict[str, float]] = {}
    for values, scenario in cells:
        combination = tuple(values[path] for path in others)
        if combination not in known:
            known[combination] = best_momenta(scenario)
    rows = [known[tuple(best[path].iloc[place] for path in others)] for place in range(len(best))]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return best.assign(**{name: [row.get(name, np.nan) for row in rows] for name in names})
