"""Comparing two runs or traces: each difference beside what chance alone would make, and where equal schedules part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from asyncsim.divergence import first_divergence, first_other_row, has_model
from asyncsim.noise import (
    BLOCKS,
    ROUNDING,
    Difference,
    block_length,
    curve_difference,
    independent_gradients,
    staleness_counts,
    trace_differences,
)
from asyncsim.results import ResultsError, open_run, open_trace
from asyncsim.runs import Run
from asyncsim.trace import Trace

#: All quantities together exceed their limits with at most this probability where there is nothing but chance.
FALSE_ALARMS = 0.05

#: Gradients of each worker that are left out where no scenario says how many: workers begin in step.
WARMUP_ROUNDS = 10

#: What a scenario's name for itself says nothing about.
UNCOMPARED = ("name", "description")

AGREES, DIFFERS, NOT_JUDGED = "agrees", "differs", "not judged"

Against = Literal["update", "time"]
Source = Run | Trace | str | Path


@dataclass(frozen=True)
class Row:
    """One quantity of two runs.

    `noise` is the 95 % band of the difference that chance alone makes, of this quantity by itself; `limit` is what
    `difference` was held against. `a_error` and `b_error` are half-widths of 95 % intervals. NaN where there is none.
    """

    quantity: str
    a: float
    b: float
    difference: float
    noise: float = math.nan
    limit: float = math.nan
    verdict: str = NOT_JUDGED
    a_error: float = math.nan
    b_error: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    rows
        The quantities; `table` has them as a DataFrame.
    settings
        Settings that differ between the scenarios: (dotted path, value in a, value in b), None where there is none.
    tolerance, warmup
        As they were used; tolerance None stands for the noise itself.
    same_schedule
        Whether the two traces have the same gradients in the same updates, whatever their times.
    parted
        Where the models of equal schedules first differ: (replica, update); None where they do not, or schedules do.
    notes
        Sentences on what could not be compared, and why.
    metric, against
        The metric whose curves were compared, None if none was, along "update" or "time".
    names, runs
        What was compared.
    """

    names: tuple[str, str]
    rows: tuple[Row, ...]
    settings: tuple[tuple[str, Any, Any], ...]
    tolerance: float | None
    warmup: int
    same_schedule: bool
    parted: tuple[int, int] | None
    notes: tuple[str, ...]
    metric: str | None
    against: Against
    runs: tuple[Run, Run] = field(repr=False)

    @property
    def agrees(self) -> bool:
        """Whether no quantity is beyond its limit."""
        return all(row.verdict != DIFFERS for row in self.rows)

    @property
    def table(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self.rows])

    def __getitem__(self, quantity: str) -> Row:
        """Return the first row whose quantity begins so."""
        for row in self.rows:
            if row.quantity.startswith(quantity):
                return row
        raise KeyError(f"no quantity '{quantity}'; there is: {', '.join(row.quantity for row in self.rows)}")

    def __str__(self) -> str:
        """Return the comparison as a readable table."""
        return "\n".join(_lines(self))


def compare(a: Source, b: Source, *, tolerance: float | None = None, warmup: int | None = None) -> Comparison:
    """Compare two runs or traces: staleness, worker shares, throughput, loss and, of one schedule, the iterates.

    The distances are those of `asyncsim.noise.trace_differences`, and of `curve_difference` for the first metric that
    both runs have ("loss" if it is one). A quantity differs when it exceeds its limit: by default the noise band at
    confidence 1 − 0.05 / k, where k quantities are judged, so that two independent samples of one process are told
    apart with probability 5 % in all (Bonferroni). Loss curves need replicas: those of two runs with 6 each can be
    judged. Iterates of one schedule must be equal to the bit where problem, method and seed are the same.

    Parameters
    ----------
    a, b
        A `Run` or a `Trace`, a run directory or a `trace.parquet`, or what `asyncsim.record` returns.
    tolerance
        A limit instead of the noise: on total variation, Kolmogorov–Smirnov and the shares as they are, on throughput
        relative to that of `a`, on the loss relative to the range of its two mean curves. Iterates are not judged.
    warmup
        Updates to leave out of each replica; the larger of the two scenarios' own if left out, 10 per worker where
        there is no scenario. Loss curves are compared from the start.

    Raises
    ------
    ResultsError, TraceError
        What is given cannot be read, or has fewer than 16 updates after `warmup`.

    >>> from asyncsim.scenario import build
    >>> from asyncsim.sources import simulate
    >>> def cluster(count, seed):
    ...     workers = [{"count": count, "service": {"law": "exponential", "mean": 1.0}}]
    ...     return build({"seed": seed, "cluster": {"workers": workers}, "run": {"updates": 4000}})
    >>> compare(simulate(cluster(4, 1)), simulate(cluster(4, 2))).agrees
    True
    >>> compare(simulate(cluster(4, 1)), simulate(cluster(5, 2)))["staleness: total"].verdict
    'differs'
    """
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise ResultsError(f"the tolerance must be a number, not negative; got {tolerance}")
    names = (_name(a, "A"), _name(b, "B"))
    runs = (_opened(a), _opened(b))
    warmup = max(_warmup(run) for run in runs) if warmup is None else warmup
    for name, run in zip(names, runs, strict=True):
        left = int(np.maximum(run.trace.updates - warmup, 0).sum())
        if left < BLOCKS:
            raise ResultsError(
                f"{name}: has {left:,} updates after a warmup of {warmup:,}; at least {BLOCKS} are needed, "
                "and thousands to tell anything"
            )
    notes: list[str] = []
    differences = list(trace_differences(runs[0].trace, runs[1].trace, warmup=warmup).values())
    if differences[-1].quantity != "throughput, relative":
        notes.append("throughput not compared: a trace has no times")
    metric: str | None = None
    against: Against = "update"
    descent = 1.0
    curves = _common_curves(runs, notes)
    if curves is not None:
        metric, against, points, tables = curves
        difference, place = curve_difference(metric, tables[0], tables[1], standardised=tolerance is None)
        differences.append(replace(difference, quantity=f"{metric} at {against} {points[place]:,.6g}"))
        descent = float(np.ptp(np.stack([table.mean(axis=0) for table in tables])))
        if not difference.chance.size and tolerance is None:
            notes.append(f"{metric} not judged: its noise shows between replicas; each run should have at least 6")
    judged = sum(difference.chance.size > 0 for difference in differences)
    confidence = 1 - FALSE_ALARMS / max(judged, 1)
    rows = list(_about(runs, warmup))
    for difference in differences:
        allowed = descent if metric is not None and difference is differences[-1] else 1.0
        limit = difference.band(confidence) if tolerance is None else tolerance * allowed
        rows.append(_judged(difference, limit))
    settings = tuple(_settings(runs, notes))
    length, workers = block_length(runs[0].trace, runs[1].trace, warmup=warmup), max(run.trace.workers for run in runs)
    if length < WARMUP_ROUNDS * workers and any(run.trace.replicas.size < BLOCKS for run in runs):
        notes.append(
            f"short: the noise is judged from blocks of {length:,.0f} updates of {workers} workers, which may hide "
            "their correlation; longer runs are surer"
        )
    same, parted = _same_schedule(runs, notes), None
    if same:
        row, parted = _compare_iterates(runs, settings, notes, judge=tolerance is None)
        rows += row
    return Comparison(
        names=names,
        rows=tuple(rows),
        settings=settings,
        tolerance=tolerance,
        warmup=warmup,
        same_schedule=same,
        parted=parted,
        notes=tuple(notes),
        metric=metric,
        against=against,
        runs=runs,
    )


# --- what is given ------------------------------------------------------------------------------------------------


def _name(source: Source, otherwise: str) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return str((getattr(source, "scenario", None) or {}).get("name", otherwise))


def _opened(source: Source) -> Run:
    """Return a run; one without model and scenario where only a trace is given."""
    if isinstance(source, Run):
        return source
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return open_run(path)
        if not path.exists():
            raise ResultsError(f"{path}: no such run directory or trace")
        source = open_trace(path)
    if not isinstance(source, Trace) and hasattr(source, "final_iterates"):
        return Run(trace=source.trace, final_iterates=source.final_iterates)
    return Run(trace=source, final_iterates=np.empty((source.replicas.size, 0)))


def _warmup(run: Run) -> int:
    if run.scenario is None:
        return WARMUP_ROUNDS * run.trace.workers
    return int(run.scenario["run"].get("warmup", 0))


def _settings(runs: tuple[Run, Run], notes: list[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings that differ."""
    if runs[0].scenario is None or runs[1].scenario is None:
        notes.append("settings not compared: a trace alone does not carry its scenario")
        return
    yield from _differing(runs[0].scenario, runs[1].scenario)


def _differing(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted path, value in a, value in b) where two values differ; tables and lists part by part."""
    if not (isinstance(a, dict | list) and type(a) is type(b)):
        if a != b:
            yield path, a, b
        return
    a, b = (value if isinstance(value, dict) else dict(enumerate(value)) for value in (a, b))
    for key in [*a, *(key for key in b if key not in a)]:
        inner = f"{path}.{key}" if path else str(key)
        if inner not in UNCOMPARED:
            yield from _differing(a.get(key), b.get(key), inner)


# --- rows ---------------------------------------------------------------------------------------------------------


def _about(runs: tuple[Run, Run], warmup: int) -> Iterator[Row]:
    """Yield what is not judged: how much there is, and the means."""
    stale = [staleness_counts(run.trace, warmup=warmup) for run in runs]
    worth = [independent_gradients(run.trace, warmup=warmup) for run in runs]
    yield _plain("workers", [run.trace.workers for run in runs])
    yield _plain("gradients", [int(counts.sum()) for _, counts in stale])
    yield _plain("worth as many independent ones", [float(f"{n:.2g}") for n in worth])
    yield _plain("staleness: mean", [float(values @ counts / counts.sum()) for values, counts in stale])


def _plain(quantity: str, ends: list[Any]) -> Row:
    a, b = ends
    return Row(quantity, a, b, math.nan)


def _judged(difference: Difference, limit: float) -> Row:
    if math.isnan(limit):
        verdict = NOT_JUDGED
    else:
        size = 1.0 if math.isnan(difference.a) else max(abs(difference.a), abs(difference.b))
        verdict = DIFFERS if difference.distance > limit + ROUNDING * size else AGREES
    return Row(
        quantity=difference.quantity,
        a=difference.a,
        b=difference.b,
        difference=difference.distance,
        noise=difference.band(0.95),
        limit=limit,
        verdict=verdict,
        a_error=difference.a_error,
        b_error=difference.b_error,
    )


def _common_curves(runs: tuple[Run, Run], notes: list[str]) -> tuple[str, Against, np.ndarray, list[np.ndarray]] | None:
    """Return a common metric, along what it is compared, the points, and each run's values (replicas, points)."""
    common = [name for name in runs[0].metric_names if name in runs[1].metric_names]
    if not common:
        if runs[0].metric_names or runs[1].metric_names:
            notes.append("loss not compared: the two have no metric in common")
        return None
    metric = "loss" if "loss" in common else common[0]
    curves = [_curves(run, metric) for run in runs]
    by_update, by_time = (_common_points(curves, against) for against in ("update", "time"))
    against: Against = "update" if by_update.size >= by_time.size else "time"
    points = by_update if against == "update" else by_time
    tables = [np.stack([_at(curve[against], curve["value"], points) for curve in one]) for one in curves]
    finite = np.isfinite(np.concatenate(tables)).all(axis=0)
    if finite.sum() < 2:
        notes.append(f"{metric} not compared: there are no two updates or times at which all replicas have it, finite")
        return None
    return metric, against, points[finite], [table[:, finite] for table in tables]


def _curves(run: Run, metric: str) -> list[dict[str, np.ndarray]]:
    """Return the columns update, time and value of a metric, one table per replica."""
    table = run.measurements
    mine = np.asarray(table["metric"]) == run.metric_names.index(metric)
    columns = {name: np.asarray(table[name])[mine] for name in ("replica", "update", "time", "value")}
    places = [np.flatnonzero(columns["replica"] == replica) for replica in run.trace.replicas]
    return [{name: columns[name][place] for name in ("update", "time", "value")} for place in places]


def _common_points(curves: list[list[dict[str, np.ndarray]]], against: str) -> np.ndarray:
    """Return the updates or times at which every replica of both runs was measured."""
    points = [np.unique(curve[against]) for run in curves for curve in run]
    common = points[0]
    for more in points[1:]:
        common = np.intersect1d(common, more, assume_unique=True)
    return common[~np.isnan(common)]


def _at(known: np.ndarray, values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the values at points that are among the known ones."""
    order = np.argsort(known, kind="stable")
    at: np.ndarray = np.asarray(values, dtype=np.float64)[order][np.searchsorted(known, points, sorter=order)]
    return at


# --- one schedule -------------------------------------------------------------------------------------------------


def _same_schedule(runs: tuple[Run, Run], notes: list[str]) -> bool:
    """Say whether two traces are one schedule; note where schedules of one seed part."""
    a, b = (run.trace for run in runs)
    if a.workers != b.workers or not np.array_equal(a.replicas, b.replicas):
        return False
    row = first_other_row(a, b)
    if row is not None and a.seed == b.seed:
        replica = (a if row < len(a) else b)["replica"][row]
        notes.append(f"the schedules, of one seed, part at row {row:,}, in replica {replica}")
    return row is None and np.array_equal(a.updates, b.updates)


def _compare_iterates(
    runs: tuple[Run, Run], settings: tuple[tuple[str, Any, Any], ...], notes: list[str], *, judge: bool
) -> tuple[list[Row], tuple[int, int] | None]:
    """Return a row on the final iterates of one schedule, and where the models first differ."""
    a, b = (run.final_iterates for run in runs)
    if not (a.size and b.size):
        return [], None
    if a.shape != b.shape:
        notes.append(f"iterates not compared: the models have {a.shape[1]:,} and {b.shape[1]:,} coordinates")
        return [], None
    equal = np.ascontiguousarray(a, "<f8").tobytes() == np.ascontiguousarray(b, "<f8").tobytes()
    parted = None if equal else first_divergence(*runs)
    changed = any(path.partition(".")[0] in ("problem", "method") for path, _, _ in settings)
    same = not changed and None not in (runs[0].scenario, runs[1].scenario) and runs[0].trace.seed == runs[1].trace.seed
    if not equal and parted is None and all(has_model(run) for run in runs):
        notes.append("the final iterates differ, but replays of the two runs do not: one is not what its replay gives")
    verdict = AGREES if equal else DIFFERS if judge and same else NOT_JUDGED
    with np.errstate(invalid="ignore", over="ignore"):
        gap = 0.0 if equal else float(np.abs(a - b).max())
    limit = math.nan if verdict == NOT_JUDGED else 0.0
    return [Row("final iterates, to the bit", math.nan, math.nan, gap, limit=limit, verdict=verdict)], parted


# --- text ---------------------------------------------------------------------------------------------------------

#: Differing settings that are listed.
MOST_SETTINGS = 20


def _lines(comparison: Comparison) -> Iterator[str]:
    for letter, name, run in zip("AB", comparison.names, comparison.runs, strict=True):
        trace = run.trace
        counts = ((trace.workers, "worker"), (trace.replicas.size, "replica"), (int(trace.updates.sum()), "update"))
        said = ", ".join(f"{count:,} {what}{'s' * (count != 1)}" for count, what in counts)
        yield f"{letter}  {name}: {said}, seed {trace.seed}"
    if comparison.settings:
        yield "settings that differ:"
        for path, a, b in comparison.settings[:MOST_SETTINGS]:
            yield f"   {path}: {_value(a)} | {_value(b)}"
        if len(comparison.settings) > MOST_SETTINGS:
            yield f"   and {len(comparison.settings) - MOST_SETTINGS:,} more"
    yield ""
    yield f"{'':<32}{'A':>19}{'B':>19}{'difference':>12}{'noise 95 %':>12}{'limit':>10}"
    for row in comparison.rows:
        ends = _end(row.a, row.a_error), _end(row.b, row.b_error)
        verdict = "" if row.verdict == NOT_JUDGED else row.verdict
        numbers = f"{_number(row.difference):>12}{_number(row.noise):>12}{_number(row.limit):>10}  {verdict}"
        yield f"{row.quantity:<32}{ends[0]:>19}{ends[1]:>19}{numbers}".rstrip()
    yield ""
    yield f"The first {comparison.warmup:,} updates of each replica are left out, but of the loss."
    if comparison.tolerance is None:
        share = f"{100 * FALSE_ALARMS:g} %"
        yield f"Limits: what chance alone exceeds, in any of the quantities judged, with probability {share}."
    else:
        yield f"Limits: a tolerance of {comparison.tolerance:g}."
    if comparison.parted is not None:
        replica, update = comparison.parted
        yield f"The schedules are the same; the models first differ after update {update:,} of replica {replica}."
    elif comparison.same_schedule:
        yield "The schedules are the same."
    yield from (note[0].upper() + note[1:] + "." for note in comparison.notes)
    beyond = [row.quantity for row in comparison.rows if row.verdict == DIFFERS]
    yield "A and B agree." if comparison.agrees else f"A and B differ: {', '.join(beyond)}."


def _value(value: Any) -> str:
    """Return a setting's value in a word; of a table, what it is."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("kind", "law", "topology", "set") if key in value), "…")
    return "none" if value is None else str(value)


def _end(value: float, error: float) -> str:
    return _number(value) + ("" if math.isnan(error) else f" ± {error:.2g}")


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value == round(value, 0) and abs(value) >= 1000 else f"{value:.4g}"
