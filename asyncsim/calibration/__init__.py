"""Calibration: from a trace to the cluster that would give it.

Measured times give laws of service times, server times and latencies; staleness alone gives a service law. What the
model assumes and the trace does not bear out is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from asyncsim.calibration.assumptions import Assumption, of_delays
from asyncsim.calibration.delays import StalenessFit, fit_delays
from asyncsim.calibration.intervals import replies_before
from asyncsim.calibration.laws import FEWEST
from asyncsim.calibration.predictions import Measured, staleness_shares
from asyncsim.calibration.result import Calibration, Part
from asyncsim.calibration.timed import from_times
from asyncsim.cluster import Cluster, Server, WorkerGroup
from asyncsim.runs import Run
from asyncsim.staleness import Reply
from asyncsim.trace import Trace, TraceError


def calibrate(
    source: Trace | Run | str | Path,
    *,
    warmup: int | None = None,
    workers: int | None = None,
    columns: Mapping[str, str] | None = None,
    time_unit: str | None = None,
) -> Calibration:
    """Return the cluster whose simulation would give a trace like this one.

    Parameters
    ----------
    source
        A trace, a run, a run directory, or a file: a trace, or what `import_trace` reads.
    warmup
        Updates at the start to leave out; the run's own if left out, else 0.
    workers
        Number of workers M, where the trace does not say. If left out as well, mean staleness + 1, which holds for any
        service law where the server answers every update.
    columns
        What the columns of a file are, as for `import_trace`.
    time_unit
        Label of the unit that times are in; the run's own if left out, else "s".

    Raises
    ------
    TraceError
        One line that says what the source lacks.

    >>> import asyncsim
    >>> group = {"count": 4, "service": {"law": "gamma", "shape": 4.0, "mean": 2.0}}
    >>> scenario = asyncsim.scenario.build({"cluster": {"workers": [group]}, "run": {"updates": 8000}})
    >>> found = calibrate(asyncsim.simulate(scenario))
    >>> [(group.count, group.service.law, round(group.service.shape)) for group in found.cluster.workers]
    [(4, 'gamma', 4)]
    """
    trace, about = _opened(source, columns, workers)
    if workers is not None and 1 < trace.workers != workers:
        raise TraceError(f"{_name(source)}: has {trace.workers} workers, not workers = {workers}")
    settings = about.get("run", {})
    warmup = warmup if warmup is not None else int(settings.get("warmup", 0))
    if warmup < 0 or not (trace["read_version"] >= warmup).any():
        raise TraceError(f"{_name(source)}: warmup must leave some of its updates, got {warmup}")
    unit = time_unit or about.get("cluster", {}).get("time_unit", "s")
    timed = "start_time" in trace and "done_time" in trace
    if timed and int((~np.isnan(trace["done_time"] - trace["start_time"])).sum()) >= FEWEST:
        found = from_times(trace, warmup, unit, _name(source))
    else:
        found = _from_delays(trace, warmup, workers, _name(source))
    cores = about.get("cores")
    if cores and settings.get("source") == "record" and trace.workers > cores:
        note = f"{trace.workers} workers ran on {cores} cores: service times hold for that many workers only"
        return replace(found, notes=(*found.notes, note))
    return found


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the trace"


def _opened(source: Any, columns: Mapping[str, str] | None, workers: int | None) -> tuple[Trace, dict[str, Any]]:
    """Return a source's trace and what is known of its run."""
    from asyncsim.results import PROVENANCE, open_run, read_json, read_trace
    from asyncsim.sources.imported import import_trace

    if columns and (isinstance(source, Run | Trace) or Path(source).is_dir()):
        raise TraceError(f"{_name(source)}: --map is for the columns of a table, and a run has a trace's own")
    if isinstance(source, Run | Trace):
        run, about = source, {}
    elif Path(source).is_dir():
        run = open_run(source)
        made = Path(source) / PROVENANCE
        about = {"cores": read_json(made).get("cores") if made.is_file() else None}
    elif Path(source).suffix == ".parquet" and not columns and _is_trace(Path(source)):
        return read_trace(source), {}
    else:
        return import_trace(source, columns=columns, workers=workers), {}
    if isinstance(run, Trace):
        return run, about
    trace = run.trace if isinstance(run.trace, Trace) else read_trace(run.trace.path)
    return trace, {**(run.scenario or {}), **about}


def _is_trace(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        return False
    return b"asyncsim" in about


# --- without times --------------------------------------------------------------------------------------------------


def _from_delays(trace: Trace, warmup: int, workers: int | None, source: str) -> Calibration:
    staleness = trace.staleness(warmup=warmup)
    reply: Reply = "before_apply" if trace.workers > 1 and replies_before(trace) else "after_apply"
    said = workers if workers is not None else trace.workers if trace.workers > 1 else None
    count = said if said is not None else round(float(staleness.mean())) + 1
    updates = int(trace.updates.max())
    if updates - warmup < FEWEST:
        left = max(updates - warmup, 0)
        raise TraceError(f"{source}: needs at least {FEWEST} updates after a warmup of {warmup}, got {left}")
    measured = Measured(staleness_shares(staleness), count, updates, min(warmup, updates - 1), reply)
    fits = fit_delays(measured)
    group = tuple(range(count))
    notes = [
        f"no times: speed is unknown, and the unit of time is one mean service time of {count} alike workers",
    ]
    if said is None:
        notes.append(f"the number of workers is mean staleness + 1 = {staleness.mean() + 1:.3g}")
    return Calibration(
        cluster=Cluster(
            time_unit="mean service time",
            workers=(WorkerGroup(count=count, service=fits[0].law),),
            server=Server(reply=reply),
        ),
        parts=tuple(_staleness_part(fit, group, staleness.size) for fit in fits),
        assumptions=tuple(of_delays(trace, measured, fits)),
        notes=tuple(notes),
        source=source,
        about=f"the staleness of {staleness.size:,} gradients of {count} workers",
        order=group,
    )


def _staleness_part(fit: StalenessFit, group: tuple[int, ...], count: int) -> Part:
    return Part("workers", group, fit.law, count, float(fit.law.mean), fit.distance, fit.noise)


__all__ = ["Assumption", "Calibration", "Part", "calibrate"]
