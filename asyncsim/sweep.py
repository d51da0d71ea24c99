"""Sweeps: many cells from one scenario, each a point of a grid over dotted paths.

Every cell has the scenario's own seed, so cells with the same cluster and policy replay on the very same schedule:
differences between methods are paired. A finished cell is one file in `results.parquet/` (and one in
`curves.parquet/`), written aside and renamed; running again skips what is there.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from asyncsim.documents import ScenarioError, set_path
from asyncsim.experiment import Stage, _silent, finish, make_trace
from asyncsim.prediction import best_momenta, predict
from asyncsim.results import (
    PROVENANCE,
    SCENARIO,
    ResultsError,
    provenance,
    read_json,
    read_trace,
    refuse_existing,
    write_frame,
    write_json,
)
from asyncsim.runs import Run
from asyncsim.scenario import Scenario, Sweep, build
from asyncsim.search import best_value, check_search, shares, with_value
from asyncsim.staleness import summary as staleness_summary
from asyncsim.staleness import throughput
from asyncsim.summary import final_values, first_passage, run_estimates

if TYPE_CHECKING:
    from asyncsim.trace import Trace

RESULTS, CURVES, TUNED = "results.parquet", "curves.parquet", "tuned.parquet"


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


def run_sweep(
    scenario: Scenario, out: str | Path, *, name: str = "scenario", force: bool = False, stage: Stage = _silent
) -> Any:
    """Run every cell of a sweep that has no result yet; return the results as a DataFrame, one row per replica.

    `out` may hold an unfinished sweep of the same scenario, which is resumed; a finished one needs `force`.
    """
    out = Path(out)
    todo, sweep = cells(scenario, name=name), scenario.sweep
    assert sweep is not None
    for file in {cell.scenario.run.trace for cell in todo}:
        if file is not None:
            read_trace(file)  # whatever is wrong with it is said before anything is written
    _prepare(out, scenario, todo, force=force)
    remaining = [cell for cell in todo if not (out / RESULTS / f"{cell.key}.parquet").exists()]
    shared = ""
    with stage("sweeping", len(todo)) as progress:
        progress(len(todo) - len(remaining))
        # Cells that share a schedule run one after another, so that it is simulated once.
        for cell in sorted(remaining, key=lambda cell: (schedule_key(cell.scenario), cell.number)):
            if schedule_key(cell.scenario) != shared:
                shared = schedule_key(cell.scenario)
                trace = make_trace(cell.scenario)
                of_schedule = schedule_results(trace, cell.scenario.run.warmup)
            key, found = cell.key, {}
            if sweep.search is not None:
                value = best_value(cell.scenario, sweep.search, str(sweep.by), trace)
                found = {sweep.search.path: value}
                cell = cell._replace(scenario=with_value(cell.scenario, sweep.search.path, value))
            run = finish(cell.scenario, trace)
            results = results_of(cell, run, of_schedule).assign(**found)
            if run.metric_names:
                write_frame(_labelled(cell, run.metrics), out / CURVES / f"{key}.parquet")
            write_frame(_labelled(cell, results), out / RESULTS / f"{key}.parquet")
            progress(1)
    frame = read_results(out)
    if sweep.tune is not None:
        best = tuned(frame, sweep.tune, str(sweep.by))
        if sweep.search is not None:
            best = _with_searched(best, frame, sweep)
        write_frame(_with_theory(best, todo, sweep), out / TUNED)
    return frame


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


def _with_theory(best: Any, todo: list[Cell], sweep: Sweep) -> Any:
    """Add the best explicit momenta of theory where the momentum was tuned and theory knows them."""
    chosen = (sweep.tune,) if isinstance(sweep.tune, str) else sweep.tune or ()
    if "method.momentum" not in chosen:
        return best
    others = [path for path in sweep.paths if path not in chosen]
    known: dict[tuple[Any, ...], dict[str, float]] = {}
    for cell in todo:
        combination = tuple(_shown(cell.values[path]) for path in others)
        if combination not in known:
            known[combination] = best_momenta(cell.scenario)
    rows = [known[tuple(best[path].iloc[place] for path in others)] for place in range(len(best))]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return best.assign(**{name: [row.get(name, np.nan) for row in rows] for name in names})


def schedule_key(scenario: Scenario) -> str:
    """Return the hash of what decides the trace: cells that agree in it share one."""
    data = scenario.resolved()
    decides = {key: data.get(key) for key in ("seed", "cluster", "policy", "run")}
    network = scenario.cluster is not None and scenario.cluster.network is not None
    if scenario.run.stop_when is not None or getattr(scenario.method, "makes_requests", False):
        decides |= {key: data.get(key) for key in ("problem", "method", "metrics")}
    elif network and scenario.problem is not None:
        decides["dimension"] = scenario.problem.dimension
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def results_of(cell: Cell, run: Run, of_schedule: dict[str, Any]) -> Any:
    """Return one row per replica: what the run's summary holds, replica by replica, and theory's numbers beside it.

    `of_schedule` is from `schedule_results`: cells that share a trace share it.
    """
    import pandas as pd

    scenario, trace = cell.scenario, run.trace
    columns = dict(of_schedule)
    if run.metric_names:
        columns |= final_values(run)
    if scenario.metrics.target is not None:
        columns["updates_to_target"], columns["time_to_target"] = first_passage(run, scenario.metrics.target)
    for name, fit in run_estimates(scenario, run).items():
        for part in (name, "low", "high", "effective_step"):
            if part in fit:
                columns[name if part == name else f"{name}_{part}"] = fit[part]
        columns[f"{name}_refused"] = "refused" in fit
    columns |= {f"{name}_theory": value for name, value in predict(scenario).items()}
    out = {divergence.replica for divergence in run.diverged}
    columns["diverged"] = [int(replica) in out for replica in trace.replicas]
    return pd.DataFrame(columns)


def schedule_results(trace: Trace, warmup: int) -> dict[str, Any]:
    """Return what the schedule says of each replica: its updates, time and staleness."""
    columns: dict[str, Any] = {"replica": trace.replicas, "updates": trace.updates}
    rows = [rows for _, _, rows in trace.slices()]
    if trace.has_times:
        columns["time"] = [float(np.append(0.0, trace.update_times(int(replica)))[-1]) for replica in trace.replicas]
        columns["throughput"] = throughput(trace, warmup=warmup)
    measured = []
    for mine in rows:
        used = (trace["status"][mine] == 0) & (trace["update"][mine] >= warmup)
        stale = trace["update"][mine][used] - trace["read_version"][mine][used]
        measured.append(staleness_summary(stale) if stale.size else {})
    for number in ("mean", "var", "p99", "max"):
        columns[f"staleness_{number}"] = [part.get(number, np.nan) for part in measured]
    columns["unused"] = [int((trace["status"][mine] != 0).sum()) for mine in rows]
    return columns


def _labelled(cell: Cell, frame: Any) -> Any:
    """Put the cell's swept values before the other columns."""
    for place, (path, value) in enumerate(cell.values.items()):
        name = path if path not in frame.columns else f"{path} (swept)"
        frame.insert(place, name, _shown(value))
    return frame


def _shown(value: Any) -> Any:
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
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def read_results(out: str | Path, what: str = RESULTS) -> Any:
    """Return the results (or, with ``what="curves.parquet"``, the curves) of a sweep's finished cells, in order."""
    import pandas as pd
    import pyarrow.parquet as pq

    files = sorted((Path(out) / what).glob("[0-9]*.parquet"))
    if not files:
        raise ResultsError(f"{out}: holds no finished cell")
    return pd.concat([pq.read_table(file).to_pandas() for file in files], ignore_index=True)


def _nameless(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a sweep's results."""
    return {key: value for key, value in scenario.items() if key not in ("name", "description")}


def _prepare(out: Path, scenario: Scenario, todo: Iterable[Cell], *, force: bool) -> None:
    """Make the sweep's folder, or find it as an earlier start of the same sweep left it."""
    resolved = scenario.resolved()
    if (out / SCENARIO).is_file() and not force:
        if _nameless(read_json(out / SCENARIO)) != _nameless(json.loads(json.dumps(resolved))):
            raise ResultsError(f"{out}: holds another run or sweep; choose another --out, or overwrite it with --force")
        tuned_too = scenario.sweep is None or scenario.sweep.tune is None or (out / TUNED).exists()
        if tuned_too and all((out / RESULTS / f"{cell.key}.parquet").exists() for cell in todo):
            raise ResultsError(f"{out}: holds this sweep, complete; choose another --out, or redo it with --force")
        return
    refuse_existing(out, force=force)
    if out.exists():
        shutil.rmtree(out)
    (out / RESULTS).mkdir(parents=True)
    write_json(provenance(), out / PROVENANCE)
    write_json(resolved, out / SCENARIO)


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
