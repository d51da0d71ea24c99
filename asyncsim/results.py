"""Run directories: traces, metrics and summaries on disk, written aside and renamed.

A run directory holds `scenario.json` (resolved), `trace.parquet`, `metrics.parquet`, `iterates.npz` (final),
`summary.json` and `provenance.json`. It is there as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from asyncsim import stored
from asyncsim.executors import lives
from asyncsim.runs import Run
from asyncsim.stored import StoredTrace, TraceWriter, as_arrays, read_facts, refusing
from asyncsim.trace import Trace

TRACE, METRICS, ITERATES = "trace.parquet", "metrics.parquet", "iterates.npz"
SCENARIO, SUMMARY, PROVENANCE = "scenario.json", "summary.json", "provenance.json"

#: When this process began, as far as its files are concerned.
_BEGAN = time.time()


class ResultsError(ValueError):
    """A folder that cannot be written or is no run directory; the message says which and why."""


@contextlib.contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; rename it to `path` when all went well, else delete it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder beside `path` to fill; rename it to `path` when all went well, else delete it.

    What a process that was killed has left beside `path` goes too.
    """
    path = Path(path)
    refuse_existing(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    partial = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".partial", dir=path.parent))
    os.chmod(partial, 0o755)
    try:
        yield partial
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".old", dir=path.parent))
            os.replace(path, old / "run")
            os.replace(partial, path)
            shutil.rmtree(old)
        else:
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _prefix(path: Path) -> str:
    """Return how names beside `path` begin that are this process's; machines may share the folder."""
    return f".{path.name}.{_machine()}.{os.getpid()}."


def _machine() -> str:
    return platform.node()[:40]


def _remove_stale(path: Path) -> None:
    """Remove what processes of this machine have left beside `path` that were killed before this one began.

    An ".old" one stays as long as there is nothing at `path` itself: it may be the only run that there is.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(_machine())}\.(\d+)\.[^.]+\.(partial|old)")
    for entry in path.parent.iterdir():
        found = name.fullmatch(entry.name)
        with contextlib.suppress(OSError):  # another process removes it as well
            if found and entry.is_dir() and entry.stat().st_mtime < _BEGAN and (found[2] != "old" or path.exists()):
                process = int(found[1])
                if process == os.getpid() or not lives(process):  # in a container, processes have the same few numbers
                    shutil.rmtree(entry)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse to write over anything but an empty folder, or a run that the user gave up with `force`.

    Said before a long run rather than after it: a place where nothing can be written is refused too.
    """
    _refuse_unwritable(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir():
        raise ResultsError(f"{path}: is a file, not a run directory")
    if not (path / SCENARIO).exists():
        raise ResultsError(f"{path}: exists and is no run directory; choose another --out")
    if not force:
        early = ended_early(read_json(path / SUMMARY)) is not None if (path / SUMMARY).exists() else False
        what = "a real run that ended early" if early else "a complete run"
        raise ResultsError(f"{path}: holds {what}; choose another --out, or overwrite it with --force")


def refuse_file(path: str | Path, endings: tuple[str, ...], *read: str | Path) -> None:
    """Refuse a name for a file before the work that it is for: its ending, a folder, or a file that is `read`."""
    path = Path(path)
    if path.suffix not in endings:
        raise ResultsError(f"{path}: its name must end in {' or '.join(endings)}")
    if path.is_dir():
        raise ResultsError(f"{path}: is a folder; give the name of a file")
    if path.exists() and any(os.path.exists(source) and path.samefile(source) for source in read):
        raise ResultsError(f"{path}: is what is to be read; choose another --out")
    _refuse_unwritable(path)


def _refuse_unwritable(path: Path) -> None:
    """Refuse a place where nothing new can be written."""
    above = next(parent for parent in (path, *path.absolute().parents) if os.path.exists(parent))
    if above != path and not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise ResultsError(f"{path}: cannot be written: {above} is no folder that one may write to")


# --- traces ---


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace as Parquet, as docs/trace.md describes."""
    with aside(path) as partial:
        writer = TraceWriter(partial, trace.columns, blocks=0 if trace.reads is None else trace.reads.shape[1])
        for part in trace.parts(*trace.columns):
            writer.write(part if trace.reads is None else {**part, "reads": trace.reads})
        writer.close(trace)


def read_trace(path: str | Path) -> Trace:
    """Read a trace and check it again; raise `TraceError` where the file is none."""
    import pyarrow.parquet as pq

    about, _ = read_facts(path)
    with refusing(path):
        table = pq.read_table(path)
    columns = as_arrays(table)
    return Trace(
        columns,
        reads=columns.pop("reads", None),
        seed=about["seed"],
        workers=about["workers"],
        updates=about["updates"],
        replicas=about["replicas"],
        events=about["events"],
        consecutive_draws=about["consecutive_draws"],
    )


def open_trace(path: str | Path) -> Trace:
    """Read a trace, or, where it is too long to be held, check it and leave it where it is.

    An imported trace whose draws need not be consecutive, and one of mixed reads, are always held.
    """
    about, metadata = read_facts(path)
    whole = not about["consecutive_draws"] or "reads" in metadata.schema.to_arrow_schema().names
    if metadata.num_rows <= stored.LONGEST_IN_MEMORY or whole:
        return read_trace(path)
    return StoredTrace(path)


# --- runs ---


def write_json(data: Any, path: str | Path) -> None:
    """Write plain data as readable JSON; NaN becomes null."""
    with aside(path) as partial:
        partial.write_text(json.dumps(_plain(data), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a run's JSON file; raise `ResultsError` where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: cannot be read: {error}") from None


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def scenario_folder(folder: str | Path) -> str:
    """Return where a run's scenario looked for files and modules; the run's own folder where that is not known."""
    path = Path(folder) / PROVENANCE
    known = read_json(path).get("scenario_folder") if path.exists() else None
    return str(known or folder)


def ended_early(summary: Mapping[str, Any]) -> str | None:
    """Return why a real run ended early, from its summary; None where a run came to its end."""
    return summary.get("recorded", {}).get("ended_early")


def write_frame(frame: Any, path: str | Path) -> None:
    """Write a DataFrame as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with aside(path) as partial:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), partial)


def write_run(folder: str | Path, scenario: Any, run: Run) -> None:
    """Write a run's files into a folder, which should be one from `folder_aside`."""
    folder = Path(folder)
    if not (isinstance(run.trace, StoredTrace) and run.trace.path == folder / TRACE):
        write_trace(run.trace, folder / TRACE)
    if scenario.problem is not None:
        with aside(folder / ITERATES) as partial, open(partial, "wb") as handle:
            sums = {f"checksums_{place}": values for place, values in enumerate(run.checksums)}
            np.savez(handle, final=run.final_iterates, **sums)  # type: ignore[arg-type]
    write_measured(folder, scenario, run)
    write_json({**provenance(), "scenario_folder": os.path.abspath(scenario.folder)}, folder / PROVENANCE)
    write_json(scenario.resolved(), folder / SCENARIO)


def write_measured(folder: str | Path, scenario: Any, run: Run) -> None:
    """Write what a replay has measured; each file is replaced as a whole, the summary last."""
    folder = Path(folder)
    if scenario.problem is not None:
        write_frame(run.metrics, folder / METRICS)
    write_json(run.summary, folder / SUMMARY)


def open_run(folder: str | Path) -> Run:
    """Open a run directory.

    Returns a `Run` with `trace`, `metrics` (DataFrame), `summary` (dict), `final_iterates` (replicas, d), and
    `scenario`, the resolved scenario as plain data.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    if not (folder / SCENARIO).is_file() or not (folder / TRACE).is_file():
        what = "a sweep: read results.parquet" if (folder / "results.parquet").is_dir() else "no run directory"
        raise ResultsError(f"{folder}: is {what}")
    trace = open_trace(folder / TRACE)
    summary, scenario = read_json(folder / SUMMARY), read_json(folder / SCENARIO)
    if "problem" not in scenario:
        return Run(trace=trace, final_iterates=np.empty((trace.replicas.size, 0)), summary=summary, scenario=scenario)
    try:
        frame = pq.read_table(folder / METRICS).to_pandas()
        with np.load(folder / ITERATES) as arrays:
            final = arrays["final"]
            kept = [f"checksums_{place}" for place in range(len(final))]
            checksums = tuple(arrays[name] for name in kept if name in arrays)
        if len(final) != trace.replicas.size or len(checksums) not in (0, len(final)):
            raise ValueError(f"{ITERATES} does not have the {trace.replicas.size} replicas of the trace")
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ResultsError(f"{folder}: is damaged: {error}") from None
    frame["metric"] = frame["metric"].astype("category")  # it has no type where nothing was measured
    names = tuple(frame["metric"].cat.categories)
    measurements = {name: np.asarray(frame[name].cat.codes if name == "metric" else frame[name]) for name in frame}
    return Run(
        trace=trace,
        final_iterates=final,
        measurements=measurements,
        metric_names=names,
        checksums=checksums,
        summary=summary,
        scenario=scenario,
    )


def provenance() -> dict[str, Any]:
    """Return what made a result: versions and machine. Nothing in it affects the result's hash."""
    packages = ("asyncsim", "numpy", "scipy", "numba", "simpy", "pandas", "pyarrow", "scikit-learn", "networkx")
    versions = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
    }
