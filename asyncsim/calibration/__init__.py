"""Calibration: from a trace to the cluster that would give it.

Measured times give laws of service times, server times and latencies; staleness alone gives a service law. What the
model assumes and the trace does not bear out is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asyncsim.calibration.assumptions import Assumption, of_delays, of_times, percent
from asyncsim.calibration.delays import Measured, StalenessFit, fit_delays, staleness_shares
from asyncsim.calibration.intervals import NEGLIGIBLE, Intervals, intervals, replies_before
from asyncsim.calibration.laws import FEWEST, Fit, fit_law
from asyncsim.calibration.workers import inflation, pool
from asyncsim.durations import Empirical
from asyncsim.network import Network
from asyncsim.runs import Run
from asyncsim.scenario import Cluster, Server, WorkerGroup
from asyncsim.staleness import Reply
from asyncsim.trace import Trace, TraceError


@dataclass(frozen=True)
class Part:
    """One fitted law of a calibration and what it was fitted to.

    `distance` is that of Kolmogorov and Smirnov between law and durations; where only staleness is known, the total
    variation between simulated and measured staleness. `noise` is what chance alone gives.
    """

    name: str
    workers: tuple[int, ...]
    law: Any
    count: int
    mean: float
    distance: float
    noise: float


@dataclass(frozen=True)
class Calibration:
    """A cluster fitted to a trace.

    Attributes
    ----------
    cluster
        The `Cluster`, for a scenario of your own.
    parts
        The fitted laws: one per group of workers, and those of the server and the network where they take time.
    assumptions
        What the model assumes, and whether the trace bears it out.
    notes
        What was left out of the model, or assumed in making it.
    order
        The trace's number of each of the cluster's workers. A scenario numbers its groups one after the other, so
        workers are renumbered where the trace's groups interleave; a worker's number is only a name.
    source
        What was calibrated, in a word.
    """

    cluster: Cluster
    parts: tuple[Part, ...]
    assumptions: tuple[Assumption, ...]
    notes: tuple[str, ...]
    source: str
    about: str = ""
    order: tuple[int, ...] = field(default=(), repr=False)

    @property
    def warnings(self) -> list[str]:
        """What the trace does not bear out and the cluster assumes all the same."""
        return [said for said in (assumption.warning for assumption in self.assumptions) if said]

    @property
    def fits(self) -> Any:
        """The fitted laws as a DataFrame: part, workers, law, its parameters, count, mean, distance, noise."""
        import pandas as pd

        from asyncsim.calibration.document import inline

        rows = [
            {
                "part": part.name,
                "workers": ", ".join(map(str, part.workers)),
                "law": part.law.law,
                "parameters": "" if isinstance(part.law, Empirical) else inline(part.law),
                "count": part.count,
                "mean": part.mean,
                "distance": part.distance,
                "noise": part.noise,
            }
            for part in self.parts
        ]
        return pd.DataFrame(rows)

    @property
    def checks(self) -> Any:
        """The assumptions as a DataFrame: assumption, verdict, figure."""
        import pandas as pd

        rows = [{"assumption": a.name, "verdict": a.verdict, "figure": a.figure} for a in self.assumptions]
        return pd.DataFrame(rows)

    def toml(self, *, name: str = "cluster") -> str:
        """Return the text of a scenario file's [cluster]; measured durations are looked for in files `name`.….csv."""
        from asyncsim.calibration.document import cluster_text

        return cluster_text(self, name)[0]

    def write(self, path: str | Path) -> list[Path]:
        """Write the cluster to a TOML file, and the durations of empirical laws beside it; return what was written."""
        from asyncsim.calibration.document import write

        return write(self, Path(path))

    def lines(self) -> list[str]:
        """Return the report for the terminal."""
        from asyncsim.calibration.document import report_lines

        return report_lines(self)


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
        Number of workers M; that of the trace if left out. From delays that do not say, mean staleness + 1, which holds
        for any service law where the server answers every update.
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
    >>> [(group.count, group.service.law, round(group.service.shape, 1)) for group in found.cluster.workers]
    [(4, 'gamma', 4.0)]
    """
    trace, about = _opened(source, columns, workers)
    settings = about.get("run", {})
    warmup = warmup if warmup is not None else int(settings.get("warmup", 0))
    if warmup < 0 or not (trace["read_version"] >= warmup).any():
        raise TraceError(f"{_name(source)}: warmup must leave some of its updates, got {warmup}")
    unit = time_unit or about.get("cluster", {}).get("time_unit", "s")
    timed = "start_time" in trace and "done_time" in trace
    if timed and int((~np.isnan(trace["done_time"] - trace["start_time"])).sum()) >= FEWEST:
        found = _from_times(trace, warmup, unit, _name(source))
    else:
        found = _from_delays(trace, warmup, workers, _name(source))
    cores = about.get("cores")
    if cores and settings.get("source") == "record" and trace.workers > cores:
        note = f"{trace.workers} workers ran on {cores} cores: service times hold for that many workers only"
        return Calibration(**{**vars(found), "notes": (*found.notes, note)})
    return found


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the trace"


def _opened(source: Any, columns: Mapping[str, str] | None, workers: int | None) -> tuple[Trace, dict[str, Any]]:
    """Return a source's trace and what is known of its run."""
    from asyncsim.results import PROVENANCE, open_run, read_json, read_trace
    from asyncsim.sources.imported import import_trace

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


# --- with times -----------------------------------------------------------------------------------------------------


def _from_times(trace: Trace, warmup: int, unit: str, source: str) -> Calibration:
    times = intervals(trace, warmup=warmup)
    notes: list[str] = []
    service = times.service
    if times.turnaround.mean() > NEGLIGIBLE * times.cycle:
        service = service + times.turnaround
    measured = [service[times.worker == worker] for worker in range(trace.workers)]
    inflations = np.array([inflation(one) for one in measured])
    groups = _groups(measured, inflations, notes, source)
    fits = [_fit(measured, group, inflations) for group in groups]
    parts = [
        _part("workers", group, fit, np.concatenate([measured[worker] for worker in group]))
        for group, fit in zip(groups, fits, strict=True)
    ]
    server = _server(trace, times, parts, notes)
    network = _network(times, parts, notes)
    cluster = Cluster(
        time_unit=unit,
        workers=tuple(WorkerGroup(count=len(g), service=fit.law) for g, fit in zip(groups, fits, strict=True)),
        server=server,
        network=network,
    )
    return Calibration(
        cluster=cluster,
        parts=tuple(parts),
        assumptions=tuple(of_times(trace, times, groups, fits, inflations)),
        notes=tuple(notes),
        source=source,
        about=f"{service.size:,} service times of {trace.workers} workers, in {unit}",
        order=tuple(worker for group in groups for worker in group),
    )


def _groups(measured: Sequence[np.ndarray], inflations: np.ndarray, notes: list[str], source: str) -> list[list[int]]:
    """Return the groups of workers that cannot be told apart; workers with few durations join those closest in mean."""
    enough = [worker for worker, times in enumerate(measured) if times.size >= FEWEST]
    if not enough:
        most = max(times.size for times in measured)
        raise TraceError(f"{source}: no worker has {FEWEST} service times (the most is {most}): record more updates")
    pooled = pool([measured[worker] for worker in enough], inflations[enough].tolist())
    groups = [[enough[place] for place in members] for members in pooled]
    few = sorted(set(range(len(measured))) - set(enough))
    means = [np.concatenate([measured[worker] for worker in group]).mean() for group in groups]
    for worker in few:
        own = measured[worker].mean() if measured[worker].size else means[0]
        groups[int(np.argmin(np.abs(np.array(means) - own)))].append(worker)
        notes.append(f"worker {worker} has {measured[worker].size} service times, too few: counted with those closest")
    return sorted(sorted(group) for group in groups)


def _fit(measured: Sequence[np.ndarray], group: Sequence[int], inflations: np.ndarray) -> Fit:
    durations = np.concatenate([measured[worker] for worker in group])
    return fit_law(durations, inflation=float(inflations[list(group)].mean()))


def _part(name: str, workers: Sequence[int], fit: Fit, durations: np.ndarray) -> Part:
    return Part(name, tuple(workers), fit.law, fit.size, float(durations.mean()), fit.distance, fit.noise)


def _server(trace: Trace, times: Intervals, parts: list[Part], notes: list[str]) -> Server:
    reply: Reply = "before_apply" if replies_before(trace) else "after_apply"
    if times.server.size < FEWEST:
        notes.append("the server's time per update is not known, and taken as 0")
        return Server(reply=reply)
    busy = float(times.server.mean()) / times.period
    if busy <= NEGLIGIBLE:
        notes.append(f"the server is busy {percent(busy)} of the time, and its time per update taken as 0")
        return Server(reply=reply)
    fit = fit_law(times.server, inflation=inflation(times.server))
    parts.append(_part("server", (), fit, times.server))
    return Server(service=fit.law, reply=reply)


def _network(times: Intervals, parts: list[Part], notes: list[str]) -> Network | None:
    both = np.concatenate([times.down, times.up])
    if both.size < FEWEST:
        notes.append("the times of messages are not known, and taken as 0")
        return None
    sent = [float(way.mean()) for way in (times.down, times.up) if way.size]
    share = sum(sent) / times.cycle
    if share <= NEGLIGIBLE:
        notes.append(f"messages take {percent(share)} of a worker's cycle, and the network is left out")
        return None
    if times.up_mixed:
        notes.append("the server was hardly ever free when a message was sent, so latency includes waiting")
    few = min(times.down.size, times.up.size)
    if few:  # equally many of both ways, so that the mean of the two is right
        both = np.concatenate([way[_spread(way.size, few)] for way in (times.down, times.up)])
    fit = fit_law(both, inflation=inflation(both))
    parts.append(_part("network", (), fit, both))
    return Network(topology="star", latency=fit.law)


def _spread(size: int, count: int) -> np.ndarray:
    """Return `count` places, spread evenly over 0 … size − 1."""
    return np.arange(count) * size // count


# --- without times --------------------------------------------------------------------------------------------------


def _from_delays(trace: Trace, warmup: int, workers: int | None, source: str) -> Calibration:
    staleness = trace.staleness(warmup=warmup)
    reply: Reply = "before_apply" if trace.workers > 1 and replies_before(trace) else "after_apply"
    said = workers if workers is not None else trace.workers if trace.workers > 1 else None
    count = said if said is not None else round(float(staleness.mean())) + 1
    if not staleness.size:
        raise TraceError(f"{source}: warmup = {warmup} leaves no update")
    updates = int(trace.updates.max())
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
