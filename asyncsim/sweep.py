"""Sweeps: every cell of a scenario with a [sweep], on all cores or on a cluster.

A finished cell is one file in `results.parquet/` (and one in `curves.parquet/`), written aside and renamed; a failed
one is a file in `failed/`, with its traceback. Running again skips what is finished. Which process ran
which cell in which order leaves no mark: the bytes are the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from asyncsim.cells import Cell, cells, schedule_key, shown
from asyncsim.cost import TRIED_BY_SEARCH, cost
from asyncsim.executors import ExecutorError, Outcomes, Task, cores, here
from asyncsim.experiment import Stage, _silent, finish, make_trace
from asyncsim.prediction import predict
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
from asyncsim.scenario import Scenario, Search, Sweep, build
from asyncsim.staleness import summary as staleness_summary
from asyncsim.staleness import throughput
from asyncsim.summary import final_values, first_passage, run_estimates
from asyncsim.tuning import best_cells, best_value, with_value

if TYPE_CHECKING:
    from asyncsim.trace import Trace

RESULTS, CURVES, TUNED, FAILED = "results.parquet", "curves.parquet", "tuned.parquet", "failed"

#: Seconds of estimated work below which starting worker processes takes longer than they save.
TINY = 3.0


def run_sweep(
    scenario: Scenario,
    out: str | Path,
    *,
    name: str = "scenario",
    force: bool = False,
    stage: Stage = _silent,
    jobs: int | None = None,
    executor: Literal["local", "dask"] = "local",
    scheduler: str | None = None,
    shard: tuple[int, int] | None = None,
) -> Any:
    """Run every cell of a sweep that has no result yet; return the results as a DataFrame, one row per replica.

    Parameters
    ----------
    scenario
        From `asyncsim.load`, with a [sweep].
    out
        Folder to write. It may hold an unfinished sweep of the same scenario, which is resumed; a finished one needs
        `force`. Cells that failed are in its `failed/` (see `failures`), and are tried again by the next start.
    name
        Stands in errors.
    stage
        A context manager (name, total) → function of progress; for progress bars.
    jobs
        Worker processes; all cores if left out, and none at all for a few seconds' work of our own code.
    executor, scheduler
        "dask" sends the cells to the cluster of this scheduler, or to one made here.
    shard
        (i, n): run only the i-th of n equal parts, i = 1, …, n.

    >>> import asyncsim
    >>> axes = {"method.step": [0.01, 0.02]}
    >>> scenario = asyncsim.load("scenarios/quickstart.toml", overrides={"run.updates": 200, "sweep": axes})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     frame = run_sweep(scenario, f"{folder}/sweep")
    >>> frame.groupby("method.step")["staleness_mean"].mean().round(1).tolist()  # on the same schedules
    [15.3, 15.3]
    """
    out = Path(out)
    all_cells, sweep = cells(scenario, name=name), scenario.sweep
    assert sweep is not None
    if force and shard is not None:
        raise ResultsError(f"{out}: shards share this folder, so none of them may overwrite it: remove it by hand")
    for file in {cell.scenario.run.trace for cell in all_cells}:
        if file is not None:
            read_trace(file)  # whatever is wrong with it is said before anything is written
    run = _executor(executor, scheduler, jobs, sweep.timeout)
    _prepare(out, scenario, force=force)
    mine = all_cells if shard is None else part(all_cells, *shard)
    remaining = [cell for cell in mine if not _finished(out, cell)]
    whole = sweep.tune is None or (out / TUNED).exists()
    if not remaining and shard is None and whole:
        raise ResultsError(f"{out}: holds this sweep, complete; choose another --out, or redo it with --force")
    if remaining:
        (out / TUNED).unlink(missing_ok=True)
    leftovers = {cell.key for cell in remaining} | ({Path(TUNED).stem} if shard is None else set())
    _remove_leftovers(out, leftovers)
    tasks = [_task(cell, out, sweep.search, sweep.by) for cell in remaining]
    of_key = {cell.key: cell for cell in remaining}
    try:
        with (
            stage("sweeping", len(mine)) as progress,
            contextlib.closing(run(tasks, _are_harmless(remaining, sweep))) as outcomes,
        ):
            progress(len(mine) - len(remaining))
            for task, failure in outcomes:
                record = out / FAILED / f"{task.key}.json"
                if failure is None:
                    record.unlink(missing_ok=True)
                else:
                    cell = of_key[task.key]
                    about = {"cell": cell.key, "seed": cell.scenario.seed, "values": cell.values}
                    write_json({**about, **failure._asdict()}, record)
                progress(1)
    finally:
        _remove_leftovers(out, leftovers)
    with contextlib.suppress(OSError):
        (out / FAILED).rmdir()  # where nothing failed, or nothing fails any more
    frame = read_results(out, empty=True)
    if sweep.tune is not None and len(frame) and all(_settled(out, cell) for cell in all_cells):
        named = [({path: shown(value) for path, value in cell.values.items()}, cell.scenario) for cell in all_cells]
        write_frame(best_cells(frame, sweep, named), out / TUNED)
    return frame


def _executor(
    executor: str, scheduler: str | None, jobs: int | None, timeout: float | None
) -> Callable[[list[Task], bool], Outcomes]:
    """Return what runs tasks: a function of them, and of whether they are few and sure to harm nobody."""
    function = "asyncsim.sweep:CellRunner"
    if jobs is not None and jobs < 1:
        raise ExecutorError(f"--jobs: must be at least 1, got {jobs}")
    if executor == "dask":
        if importlib.util.find_spec("distributed") is None:
            raise ExecutorError("--executor dask: needs dask and distributed: pip install 'asyncsim[dask]'")
        from asyncsim.executors.dask import dask

        return lambda tasks, harmless: dask(function, tasks, jobs=jobs or cores(), timeout=timeout, scheduler=scheduler)
    if scheduler is not None:
        raise ExecutorError("--scheduler: is for --executor dask")

    def run(tasks: list[Task], harmless: bool) -> Outcomes:
        if harmless and jobs is None and timeout is None:
            return here(function, tasks)
        from asyncsim.executors.local import local

        return local(function, tasks, jobs=jobs or cores(), timeout=timeout)

    return run


def _are_harmless(remaining: Sequence[Cell], sweep: Sweep) -> bool:
    """Say whether cells are sure to take a few seconds; who knows what a user's own code does to its process."""
    tries = 1 if sweep.search is None else TRIED_BY_SEARCH
    seconds = 0.0
    for cell in remaining:
        if cell.scenario.run.source == "trace" or _names_own_code(cell.scenario.resolved()):
            return False
        seconds += tries * cost(cell.scenario).seconds
        if seconds > TINY:
            return False
    return True


def _names_own_code(data: Any) -> bool:
    """Say whether a scenario, as plain data, has parts of the user's own."""
    if isinstance(data, Mapping):
        own = any(":" in str(data.get(tag, "")) for tag in ("kind", "law", "set"))
        return own or any(_names_own_code(value) for value in data.values())
    return isinstance(data, list) and any(_names_own_code(value) for value in data)


def part(all_cells: Sequence[Cell], i: int, n: int) -> list[Cell]:
    """Return the i-th of n parts, i = 1, …, n, whose sizes differ by one at most; it depends on the cells alone.

    The cells of one schedule stay together but where a cut falls, so that most schedules are simulated once.
    """
    if not 1 <= i <= n:
        raise ResultsError(f"--shard: must be i/n with 1 ≤ i ≤ n, got {i}/{n}")
    first: dict[str, int] = {}
    for cell in all_cells:
        first.setdefault(schedule_key(cell.scenario), cell.number)
    ordered = sorted(all_cells, key=lambda cell: (first[schedule_key(cell.scenario)], cell.number))
    return sorted(ordered[(i - 1) * len(ordered) // n : i * len(ordered) // n])


# --- one cell ---


def _task(cell: Cell, out: Path, search: Search | None, by: str | None) -> Task:
    """Return what `CellRunner` needs to know of a cell, as plain data."""
    data = {
        "number": cell.number,
        "values": cell.values,
        "scenario": cell.scenario.resolved(),
        "folder": os.path.abspath(cell.scenario.folder),
        "out": os.path.abspath(out),
        "search": None if search is None else search.model_dump(),
        "by": by,
    }
    return Task(cell.key, schedule_key(cell.scenario), data)


class CellRunner:
    """Runs cells and writes their results; keeps the last schedule for the next cell that shares it."""

    def __init__(self) -> None:
        self._schedule = ""
        self._trace: Trace
        self._of_schedule: dict[str, Any]

    def __call__(self, task: Mapping[str, Any]) -> None:
        """Run the cell that `_task` described, unless it is finished."""
        scenario = build(task["scenario"], folder=task["folder"])
        cell, out, found = Cell(task["number"], task["values"], scenario), Path(task["out"]), {}
        if _finished(out, cell):
            return
        schedule = schedule_key(scenario)
        if schedule != self._schedule:
            self._schedule = ""  # also where this fails
            self._trace = make_trace(scenario)
            self._of_schedule = schedule_results(self._trace, scenario.run.warmup)
            self._schedule = schedule
        key = cell.key
        if task["search"] is not None:
            search = Search.model_validate(task["search"])
            value = best_value(scenario, search, str(task["by"]), self._trace)
            found = {search.path: value}
            cell = cell._replace(scenario=with_value(scenario, search.path, value))
        run = finish(cell.scenario, self._trace)
        results = results_of(cell, run, self._of_schedule).assign(**found)
        if run.metric_names:
            write_frame(_labelled(cell, run.metrics), out / CURVES / f"{key}.parquet")
        write_frame(_labelled(cell, results), out / RESULTS / f"{key}.parquet")


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
    columns |= run.facts
    if "certificate" in run.summary:
        columns["certificate"] = [found["order"] for found in run.summary["certificate"]]
    for name, values in run.summary.get("saddle_region", {}).items():
        columns[f"saddle_region_{name}"] = values
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
        frame.insert(place, name, shown(value))
    return frame


# --- the folder ---


def _finished(out: Path, cell: Cell) -> bool:
    return (out / RESULTS / f"{cell.key}.parquet").exists()


def _settled(out: Path, cell: Cell) -> bool:
    return _finished(out, cell) or (out / FAILED / f"{cell.key}.json").exists()


def read_results(out: str | Path, what: str = RESULTS, *, empty: bool = False) -> Any:
    """Return the results (or, with ``what="curves.parquet"``, the curves) of a sweep's finished cells, in order.

    Where none is finished that is an error, unless it may be `empty`.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    files = sorted((Path(out) / what).glob("[0-9]*.parquet"))
    if not files and not empty:
        raise ResultsError(f"{out}: holds no finished cell")
    frames = [pq.read_table(file).to_pandas() for file in files]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def failures(out: str | Path) -> list[dict[str, Any]]:
    """Return what is known of a sweep's failed cells: cell (its key), seed, values, reason, traceback."""
    return [read_json(file) for file in sorted((Path(out) / FAILED).glob("[0-9]*.json"))]


def state(
    scenario: Scenario, out: str | Path, *, shard: tuple[int, int] | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Return the failures among the cells of a shard, and how many cells of the whole sweep have not been run yet."""
    all_cells = cells(scenario)
    mine = {cell.key for cell in (all_cells if shard is None else part(all_cells, *shard))}
    failed = [failure for failure in failures(out) if failure["cell"] in mine]
    return failed, sum(not _settled(Path(out), cell) for cell in all_cells)


def _nameless(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a sweep's results."""
    decides = {key: value for key, value in scenario.items() if key not in ("name", "description")}
    sweep = {key: value for key, value in decides.get("sweep", {}).items() if key != "timeout"}
    return {**decides, "sweep": sweep}


def _prepare(out: Path, scenario: Scenario, *, force: bool) -> None:
    """Make the sweep's folder, or find it as an earlier start, or another shard, of the same sweep left it."""
    resolved = scenario.resolved()
    if force or not (out / SCENARIO).is_file():
        refuse_existing(out, force=force)
        place = out.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", suffix=".partial", dir=place.parent) as aside:
            new = Path(aside) / "new"
            (new / RESULTS).mkdir(parents=True)
            write_json(provenance(), new / PROVENANCE)
            write_json(resolved, new / SCENARIO)
            if force and place.exists():
                os.replace(place, Path(aside) / "old")
            try:
                os.replace(new, place)
            except OSError:
                if not (out / SCENARIO).is_file():  # it is there where another shard was faster
                    raise
    if _nameless(read_json(out / SCENARIO)) != _nameless(json.loads(json.dumps(resolved))):
        raise ResultsError(f"{out}: holds another run or sweep; choose another --out, or overwrite it with --force")


def _remove_leftovers(out: Path, names: Collection[str]) -> None:
    """Remove what was being written under these names by processes that died. Other shards may be at work on others."""
    for file in out.rglob(".*.partial"):
        if file.name.split(".")[1] in names:
            file.unlink(missing_ok=True)
