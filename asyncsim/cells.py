"""The cells of a sweep: points of a grid over dotted paths, each a scenario of its own.

Every cell has the scenario's own seed, so cells with the same cluster and policy replay on the very same schedule:
differences between methods are paired.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from asyncsim.documents import ScenarioError, set_path
from asyncsim.methods import base as methods
from asyncsim.problems import base as problems
from asyncsim.scenario import Scenario, build
from asyncsim.tuning import check_search


class Cell(NamedTuple):
    """One point of a sweep: its place in the order of the file, the swept values, and the scenario they make."""

    number: int
    values: dict[str, Any]
    scenario: Scenario

    @property
    def key(self) -> str:
        """Name of the cell's files: its place and the hash of its scenario."""
        return f"{self.number:05d}-{self.scenario.sha256()[:12]}"


def cells(scenario: Scenario, *, name: str = "scenario") -> list[Cell]:
    """Return the cells of a scenario's [sweep], each checked as a scenario of its own.

    The grid's first path varies slowest; zip groups come after the grid. Raises `ScenarioError` naming the cell.
    """
    if scenario.sweep is None:
        raise ScenarioError(f"{name}: has no [sweep]")
    base = {key: value for key, value in scenario.resolved().items() if key != "sweep"}
    found: list[Cell] = []
    for values in combinations(scenario):
        data = copy.deepcopy(base)
        for path, value in values.items():
            try:
                set_path(data, path, value)
            except KeyError as error:
                raise ScenarioError(f"{name}: sweep: '{path}': {error.args[0]}") from None
        said = ", ".join(f"{path} = {label(value)}" for path, value in values.items())
        cell = build(data, name=f"{name}: sweep cell ({said})", folder=scenario.folder)
        lack = _unjudged(cell, scenario.sweep.by)
        if lack:
            raise ScenarioError(f"{name}: sweep.by: '{scenario.sweep.by}' needs {lack}")
        if scenario.sweep.search is not None and not found:
            check_search(cell, scenario.sweep.search, name=name)
        found.append(Cell(len(found), values, cell))
    if not found:
        raise ScenarioError(f"{name}: sweep: 'exclude' leaves no cell")
    return found


def _unjudged(cell: Scenario, by: str | None) -> str | None:
    """Return what a cell lacks to be judged by this number."""
    if by is None or by in cell.metrics.record:
        return None
    if by not in ("time_to_target", "updates_to_target"):
        return f"metrics.record to list it; it lists {', '.join(cell.metrics.record)}"
    if cell.metrics.target is None:
        return "metrics.target"
    synthetic = cell.run.source == "synthetic"
    return "a clock, and a synthetic trace has none" if by == "time_to_target" and synthetic else None


def combinations(scenario: Scenario) -> Iterator[dict[str, Any]]:
    """Yield the swept values of each cell: the grid's product, the zip groups, less what is excluded."""
    sweep = scenario.sweep
    assert sweep is not None
    axes: list[list[dict[str, Any]]] = [[{path: value} for value in values] for path, values in sweep.grid.items()]
    for group in sweep.zip:
        axes.append([dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)])
    for parts in itertools.product(*axes):
        values = {path: value for part in parts for path, value in part.items()}
        if not any(all(values.get(path) == value for path, value in out.items()) for out in sweep.exclude):
            yield values


def schedule_key(scenario: Scenario) -> str:
    """Return the hash of what decides the trace: cells that agree in it share one."""
    data = scenario.resolved()
    decides = {key: data.get(key) for key in ("seed", "cluster", "policy", "run")}
    network = scenario.cluster is not None and scenario.cluster.network is not None
    if scenario.run.stop_when is not None or getattr(scenario.method, "makes_requests", False):
        decides |= {key: data.get(key) for key in ("problem", "method", "metrics")}
    elif scenario.problem is not None:
        method, problem = methods.complete(scenario.method), problems.complete(scenario.problem)
        decides["gradients"] = method.gradients_per_message
        if network:
            decides["bytes"] = method.message_bytes(problem, scenario.workers)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def shown(value: Any) -> Any:
    """Return a swept value as a table can hold it."""
    return value if isinstance(value, str | int | float | bool) else label(value)


def label(value: Any) -> str:
    """Return a swept value in few words: the name of a table, the number itself."""
    if isinstance(value, Mapping):
        name = next((str(value[tag]) for tag in ("kind", "law", "set") if tag in value), "")
        rest = [f"{key}={label(item)}" for key, item in value.items() if key not in ("kind", "law", "set")]
        return " ".join([name, *rest]).strip()
    if isinstance(value, list):
        return "[" + ", ".join(label(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else f"{value:.12g}"
    return str(value)
