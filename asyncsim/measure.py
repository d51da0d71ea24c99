"""Measuring the model along a replay: which versions, which metrics, one tidy table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from asyncsim.certificate import smallest_eigenvalue
from asyncsim.computed import messages_at
from asyncsim.scenario import PLANE_METRICS, Metrics, ScenarioError
from asyncsim.trace import Trace

#: Points of a curve where the scenario does not say how many.
DEFAULT_POINTS = 100


def metric_functions(problem: Any, names: tuple[str, ...]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the function x ↦ value of each named metric that needs nothing but the model.

    loss f(x); suboptimality f(x) − f*; grad_norm ‖∇f(x)‖; distance ‖x − x*‖; accuracy as the problem defines it;
    x1 and x2 its first coordinates.
    Raises `ScenarioError` where the problem does not know its f* or x*, or has no accuracy.
    """

    def need(value: Any, name: str, what: str) -> Any:
        if value is None:
            raise ScenarioError(f"metrics.record: '{name}' needs a problem that knows its {what}")
        return value

    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for name in names:
        if name == "loss":
            functions[name] = problem.value
        elif name == "suboptimality":
            functions[name] = _suboptimality(problem, need(problem.minimum, name, "smallest value"))
        elif name == "grad_norm":
            functions[name] = lambda x: np.linalg.norm(problem.gradient(x), axis=-1)
        elif name == "distance":
            functions[name] = _distance(need(problem.minimizer, name, "minimizer"))
        elif name == "accuracy":
            try:
                problem.accuracy(np.zeros(problem.dimension))
            except NotImplementedError:
                raise ScenarioError("metrics.record: 'accuracy' needs a classification problem") from None
            functions[name] = problem.accuracy
        elif name in PLANE_METRICS:
            functions[name] = partial(_coordinate, PLANE_METRICS.index(name))
        elif name == "lambda_min":
            functions[name] = _smallest_eigenvalue(problem)
        elif name == "regret" and not hasattr(problem, "played_loss"):
            raise ScenarioError("metrics.record: 'regret' needs problem.kind = 'online'")
    return functions


def _coordinate(place: int, x: np.ndarray) -> np.ndarray:
    return x[..., place]


def _suboptimality(problem: Any, lowest: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: problem.value(x) - lowest


def _smallest_eigenvalue(problem: Any) -> Callable[[np.ndarray], np.ndarray]:
    def of_each(x: np.ndarray) -> np.ndarray:
        found = [smallest_eigenvalue(problem, one) for one in x.reshape(-1, x.shape[-1])]
        return np.array([np.nan if value is None else value for value in found]).reshape(x.shape[:-1])

    return of_each


def _distance(target: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.linalg.norm(x - target, axis=-1)


class Meter:
    """Measures a batch of replicas at chosen versions, and holds what it measured until `frame` is asked for."""

    def __init__(self, problem: Any, metrics: Metrics, seed: int, sent_bytes: int = 0):
        """Begin; `sent_bytes` is what a message to the server weighs."""
        self.problem, self.sent_bytes = problem, sent_bytes
        self.names = metrics.of_model
        self.functions = metric_functions(problem, self.names)
        self.metrics = metrics
        self.seed = seed
        self.parts: list[dict[str, np.ndarray]] = []

    def plan(self, updates: int, trace: Trace, replicas: np.ndarray, end_time: float | None) -> None:
        """Choose the versions to measure in the next batch: these replicas of a trace, each of so many updates.

        With `at_times` a replica is measured at the version it has at each point of the grid from 0 to `end_time`.
        """
        self._plan(updates, trace, replicas, end_time)
        if "bytes" in self.names:
            versions = sorted({*self.regular, *self.due})
            sent = [messages_at(trace, replica, np.array(versions)) for replica in replicas.tolist()]
            each = np.stack(sent, axis=1) * (self.sent_bytes / trace.workers)
            self.sent = dict(zip(versions, each, strict=True))

    def _plan(self, updates: int, trace: Trace, replicas: np.ndarray, end_time: float | None) -> None:
        self.due: dict[int, list[tuple[int, float]]] = {}
        points = self.metrics.at_times
        if points is None:
            every = self.metrics.every or max(1, updates // DEFAULT_POINTS)
            versions = sorted({*range(0, updates + 1, every), updates})
            times = [trace.version_times(replica, np.array(versions)) for replica in replicas.tolist()]
            self.regular = dict(zip(versions, np.stack(times, axis=1), strict=True))
            return
        self.regular = {}
        for place, replica in enumerate(replicas.tolist()):
            grid = np.linspace(0.0, 0.0 if end_time is None else end_time, points)
            at = trace.versions_at(replica, grid)
            if end_time is None or at is None:
                raise ScenarioError("metrics.at_times needs a trace with times")
            for version, time in zip(at.tolist(), grid.tolist(), strict=True):
                self.due.setdefault(version, []).append((place, time))

    def is_due(self, version: int) -> bool:
        """Say whether anything is to be measured at this version."""
        return version in self.regular or version in self.due

    def measure(
        self,
        version: int,
        x: np.ndarray,
        replicas: np.ndarray,
        played: np.ndarray | None,
        alive: np.ndarray,
        told: Mapping[str, np.ndarray],
    ) -> None:
        """Measure a version that is due, of the replicas that are `alive`.

        `x` has shape (replicas, d); `played` is the loss that each replica has met so far, for the regret; `told` has
        the metrics that only the method can tell.
        """
        if version in self.regular:
            places = np.flatnonzero(alive)
            times = self.regular[version][places]
        else:
            due = [(place, time) for place, time in self.due[version] if alive[place]]
            places = np.array([place for place, _ in due], dtype=np.int64)
            times = np.array([time for _, time in due])
        if places.size:
            played = None if played is None else played[places]
            if "bytes" in self.names:
                told = {**told, "bytes": self.sent[version]}
            told = {name: value[places] for name, value in told.items()}
            self._add(version, x[places], replicas[places], times, played, told)

    def _add(
        self,
        version: int,
        x: np.ndarray,
        replicas: np.ndarray,
        times: np.ndarray,
        played: np.ndarray | None,
        told: Mapping[str, np.ndarray],
    ) -> None:
        for name in self.names:
            value: Any
            if name in told:
                value = told[name]
            elif name == "regret":
                value = self.problem.regret(played, self.seed, replicas, version)
            else:
                function = self.functions[name]
                value = function(x) if self.problem.batched else [function(one) for one in x]
            self.parts.append(
                {
                    "replica": replicas,
                    "update": np.full(replicas.size, version),
                    "time": times,
                    "metric": np.full(replicas.size, self.names.index(name)),
                    "value": np.broadcast_to(np.asarray(value, dtype=np.float64), replicas.shape),
                }
            )

    def columns(self) -> dict[str, np.ndarray]:
        """Return the tidy table: replica, update, time, metric (a number into `names`), value."""
        names = ("replica", "update", "time", "metric", "value")
        if not self.parts:
            return {name: np.empty(0) for name in names}
        table = {name: np.concatenate([part[name] for part in self.parts]) for name in names}
        order = np.lexsort((table["metric"], table["time"], table["update"], table["replica"]))
        return {name: column[order] for name, column in table.items()}
