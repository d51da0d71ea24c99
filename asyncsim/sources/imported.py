"""Imported traces: schedules that others measured, from CSV or Parquet.

Three shapes of file are understood: a table with one row per gradient, a plain column of delays, and one column of
ages per worker. `docs/calibrate.md` says what is derived where a file says less than a trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from asyncsim.sources.sheet import Sheet, is_blank, is_number
from asyncsim.spec import closest
from asyncsim.trace import APPLIED, STATUSES, TIMES, Trace, TraceError, order_keys

#: What a column of a table may be; the times stand for the trace's `read_time`, …, `apply_time`.
KEYS = (
    *("replica", "worker", "draw", "read_version", "update", "staleness", "status", "block", "bytes_up", "bytes_down"),
    *(name.removesuffix("_time") for name in TIMES),
)
#: Other names that a column may have.
ALSO = {name: name.removesuffix("_time") for name in TIMES} | {"end": "done", "end_time": "done", "delay": "staleness"}

#: The keys any one of which makes a file a table of gradients.
ENOUGH = ("worker", "update", "read_version", "staleness", "done", "arrive", "apply")


def import_trace(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    workers: int | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Return the trace that a CSV or Parquet file holds.

    Parameters
    ----------
    path
        A table with one row per gradient; one column of delays (the staleness of update 0, 1, …); or, without a
        header, one column per worker: the age, at each update, of that worker's gradient in the server's table.
    columns
        Maps what a column is (worker, start, done, read_version, …) to its name, or to its number where there is no
        header. Columns that have a trace's own names need not be mapped.
    workers
        Number of workers M; found from the file if left out.
    scale
        Multiplies all times: 1e-3 turns milliseconds into seconds.
    seed
        Addresses the random numbers of whatever is replayed on the trace.

    Raises
    ------
    TraceError
        One line that names the file, the line, the column, the value and what is allowed.

    A column of delays does not say whose gradient went into update t. Where the server answers each update with the new
    model, exactly one worker, that of update v − 1, reads version v ≥ 1, and every worker reads version 0. So if
    r_t = t − τ_t takes each value from 1 on at most once, the workers follow: update t is by the worker of update
    r_t − 1, and a new worker where r_t = 0. Otherwise the worker is unknown, and 0 throughout.

    In a table of ages a gradient of worker w went into update t where its age is not one more than at update t − 1; it
    was read at version t − age. One update may then have several gradients.
    """
    sheet = Sheet(path)
    named = _named(sheet, columns or {})
    if named:
        parts = _of_table(sheet, named, workers, scale)
    elif len(sheet.names) == 1:
        parts = _of_delays(sheet, sheet.names[0])
    elif not sheet.has_header:
        parts = _of_ages(sheet)
    else:
        raise TraceError(
            f"{path}: no column has a name of a trace's; there is: {', '.join(sheet.names)}. Say what they are, as in "
            f"--map worker={sheet.names[0]}; allowed: {', '.join(KEYS)}"
        )
    found = int(parts["worker"].max()) + 1
    if workers is not None and found > workers:
        raise TraceError(f"{path}: has {found} workers, more than workers = {workers}")
    return _trace(path, parts, workers or found, seed)


def _named(sheet: Sheet, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each key: the mapped ones, then those that have a known name; {} if it is no table."""
    named: dict[str, str] = {}
    for said, column in columns.items():
        key = ALSO.get(said, said)
        if key not in KEYS:
            raise TraceError(f"--map: unknown '{said}'{closest(said, list(KEYS))}; allowed: {', '.join(KEYS)}")
        if column not in sheet.names:
            have = ", ".join(sheet.names) if sheet.has_header else f"no header, columns 0 … {len(sheet.names) - 1}"
            raise TraceError(f"{sheet.path}: column '{column}' (of --map {said}=…) not found; there is: {have}")
        if key in named:
            raise TraceError(f"--map: two columns are to be '{key}': '{named[key]}' and '{column}'")
        named[key] = column
    for name in sheet.names if sheet.has_header else ():
        key = ALSO.get(name.lower(), name.lower())
        if key in KEYS and key not in named and name not in named.values():
            named[key] = name
    if named and not set(named) & set(ENOUGH):
        raise TraceError(
            f"{sheet.path}: only {', '.join(named)} known; needs at least one of {', '.join(ENOUGH)}: name its column "
            f"with --map; there is: {', '.join(sheet.names)}"
        )
    return {} if set(named) == {"staleness"} and len(sheet.names) == 1 else named


# --- one column of delays, one column of ages per worker ----------------------------------------------------------


def _of_delays(sheet: Sheet, name: str) -> dict[str, np.ndarray]:
    delay = sheet.whole(name)
    update = np.arange(delay.size)
    _refuse_unborn(sheet, name, delay, update)
    return {"update": update, "read_version": update - delay, "worker": _workers_of(update - delay)}


def _refuse_unborn(sheet: Sheet, name: str, staleness: np.ndarray, update: np.ndarray) -> None:
    """Refuse a gradient that would have been read before the first update of the file."""
    bad = staleness > update
    if bad.any():
        first = int(update[bad][0])
        sheet.refuse(
            bad,
            name,
            f"at most {first} updates are before this one (for delays from the middle of a run take run.source = "
            "'synthetic' with an empirical staleness)",
        )


def _workers_of(read_version: np.ndarray) -> np.ndarray:
    """Return the worker of each update from the versions read; all 0 where they do not say.

    >>> _workers_of(np.array([0, 0, 1, 2, 4])).tolist()
    [0, 1, 0, 1, 1]
    >>> _workers_of(np.array([0, 0, 1, 1])).tolist()
    [0, 0, 0, 0]
    """
    reads = np.bincount(read_version)
    worker = np.zeros(read_version.size, dtype=np.int32)
    if (reads[1:] > 1).any():
        return worker
    new = 0
    for update, version in enumerate(read_version.tolist()):
        if version:
            worker[update] = worker[version - 1]
        else:
            worker[update] = new
            new += 1
    return worker


def _of_ages(sheet: Sheet) -> dict[str, np.ndarray]:
    ages = np.stack([sheet.whole(name) for name in sheet.names], axis=1)
    update = np.arange(sheet.size)
    before = np.vstack([np.full(len(sheet.names), -2), ages[:-1]])
    for place, name in enumerate(sheet.names):
        _refuse_unborn(sheet, name, ages[:, place], update)
        too_old = (ages[:, place] > before[:, place] + 1) & (update > 0)
        sheet.refuse(too_old, name, "an age grows by at most 1 from line to line")
    arrived = ages != before + 1
    silent = ~arrived.any(axis=1)
    sheet.refuse(silent, sheet.names[0], "no worker has a newer gradient than in the line before, so nothing came in")
    row, worker = np.nonzero(arrived)
    return {"update": row, "read_version": row - ages[row, worker], "worker": worker.astype(np.int32)}


# --- a table of gradients -----------------------------------------------------------------------------------------


def _of_table(sheet: Sheet, named: dict[str, str], workers: int | None, scale: float) -> dict[str, np.ndarray]:
    parts: dict[str, np.ndarray] = {
        "replica": sheet.whole(named["replica"]) if "replica" in named else np.zeros(sheet.size, dtype=np.int64),
        "status": _statuses(sheet, named.get("status")),
    }
    applied = parts["status"] == APPLIED
    for key in ("draw", "bytes_up", "bytes_down"):
        if key in named:
            parts[key] = sheet.whole(named[key])
    if "block" in named:
        parts["block"] = sheet.whole(named["block"], least=-1)
    times = _times(sheet, named, parts["replica"], scale)

    # Which update: as the file says, else in order of the latest time known, else in the file's order.
    settled = next((times[key] for key in ("apply", "arrive", "done") if key in times), None)
    if "update" in named:
        parts["update"] = np.where(applied, sheet.whole(named["update"], least=-1, blank=True), -1)
        sheet.refuse(applied & (parts["update"] < 0), named["update"], "an applied gradient needs its update")
        _refuse_gaps(sheet, named["update"], parts)
    else:
        if settled is not None:
            name = next(named[key] for key in ("apply", "arrive", "done") if key in named)
            sheet.refuse(np.isnan(settled), name, "must be a number, since it says which update this is")
        parts["update"] = _ranks(parts["replica"], settled, applied)
        if settled is not None and "apply" not in times:
            times["apply"] = settled

    if "worker" in named:
        parts["worker"] = _worker_numbers(sheet, named["worker"], workers)
    parts["read_version"] = _read_versions(sheet, named, parts, times)
    if "worker" not in parts:
        several = np.unique(parts["replica"]).size > 1 or not applied.all()
        order = np.argsort(parts["update"], kind="stable")
        parts["worker"] = np.zeros(sheet.size, dtype=np.int32)
        if not several and np.unique(parts["update"]).size == sheet.size:
            parts["worker"][order] = _workers_of(parts["read_version"][order])
    return parts | {f"{key}_time": time for key, time in times.items()}


def _statuses(sheet: Sheet, name: str | None) -> np.ndarray:
    if name is None:
        return np.full(sheet.size, APPLIED, dtype=np.int8)
    said = np.array([str(cell) for cell in sheet.columns[name]], dtype=object)
    sheet.refuse(~np.isin(said, STATUSES), name, f"must be one of {', '.join(STATUSES)}")
    return np.array([STATUSES.index(word) for word in said], dtype=np.int8)


def _times(sheet: Sheet, named: dict[str, str], replica: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """Return the times, in the trace's unit; where they say when work began, each replica begins at time 0."""
    if not (np.isfinite(scale) and scale > 0):
        raise TraceError(f"scale must be a positive number, got {scale}")
    order = [name.removesuffix("_time") for name in TIMES if name.removesuffix("_time") in named]
    times = {key: sheet.numbers(named[key], blank=True) * scale for key in order}
    for earlier, later in itertools.pairwise(order):
        bad = times[later] < times[earlier]
        sheet.refuse(bad, named[later], f"must not be before '{named[earlier]}' of the same gradient")
    if not {"read", "start"} & set(times):
        return times
    begin = np.fmin.reduce([times[key] for key in order])
    for one in np.unique(replica):
        rows = replica == one
        first = np.nanmin(begin[rows]) if not np.isnan(begin[rows]).all() else 0.0
        for time in times.values():
            time[rows] -= first
    return times


def _refuse_gaps(sheet: Sheet, name: str, parts: dict[str, np.ndarray]) -> None:
    for one in np.unique(parts["replica"]):
        mine = parts["replica"] == one
        used = np.unique(parts["update"][mine & (parts["update"] >= 0)])
        gap = np.flatnonzero(used != np.arange(used.size))
        if gap.size:
            bad = mine & (parts["update"] == used[gap[0]])
            sheet.refuse(bad, name, f"updates must count 0, 1, 2, … without gaps, and {gap[0]} is missing")


def _ranks(replica: np.ndarray, time: np.ndarray | None, applied: np.ndarray) -> np.ndarray:
    """Number the applied rows of each replica in order of time, ties and all without a time in the file's order."""
    update = np.full(replica.size, -1, dtype=np.int64)
    for one in np.unique(replica):
        rows = np.flatnonzero((replica == one) & applied)
        if time is not None:
            rows = rows[np.argsort(time[rows], kind="stable")]
        update[rows] = np.arange(rows.size)
    return update


def _worker_numbers(sheet: Sheet, name: str, workers: int | None) -> np.ndarray:
    """Return workers as 0, 1, …: the file's own numbers if they count from 0, else its labels in order."""
    cells = sheet.columns[name]
    sheet.refuse(np.array([is_blank(cell) for cell in cells], dtype=bool), name, "must name a worker")
    if all(is_number(cell) for cell in cells):
        values = sheet.whole(name)
        labels, number = np.unique(values, return_inverse=True)
        if (workers is not None and labels[-1] < workers) or labels[-1] == labels.size - 1:
            return values.astype(np.int32)
    else:
        labels, number = np.unique(np.array([str(cell) for cell in cells]), return_inverse=True)
    return number.reshape(-1).astype(np.int32)


def _read_versions(
    sheet: Sheet, named: dict[str, str], parts: dict[str, np.ndarray], times: dict[str, np.ndarray]
) -> np.ndarray:
    """Return the versions read: the file's; update − staleness; from times; or that after the worker's last update."""
    update, applied = parts["update"], parts["status"] == APPLIED
    if "read_version" in named:
        version = sheet.whole(named["read_version"])
        sheet.refuse(applied & (version > update), named["read_version"], "must not exceed the update")
        return version
    if "staleness" in named and applied.all():
        staleness = sheet.whole(named["staleness"])
        _refuse_unborn(sheet, named["staleness"], staleness, update)
        return update - staleness
    key = next((key for key in ("read", "start") if key in times), None)
    if key is not None and "apply" in times:
        sheet.refuse(np.isnan(times[key]), named[key], "must be a number, since it says which version was read")
        times.setdefault("read", times[key])
        unknown = applied & np.isnan(times["apply"])
        sheet.refuse(unknown, named.get("apply", ""), "must be a number, since reads are counted by it")
        return _versions_at(parts, times["read"], times["apply"])
    if "worker" not in named:
        have = ", ".join(named)
        raise TraceError(
            f"{sheet.path}: which version was read does not follow from {have}; name a column with --map: "
            "read_version, staleness, read or start (with done, arrive or apply), or worker"
        )
    if not applied.all():
        raise TraceError(f"{sheet.path}: gradients that were not applied need read_version, or times, beside worker")
    version = np.zeros(sheet.size, dtype=np.int64)
    order = np.lexsort((update, parts["worker"], parts["replica"]))
    same = (np.diff(parts["worker"][order]) == 0) & (np.diff(parts["replica"][order]) == 0)
    version[order[1:]] = np.where(same, update[order[:-1]] + 1, 0)
    return version


def _versions_at(parts: dict[str, np.ndarray], read: np.ndarray, apply: np.ndarray) -> np.ndarray:
    """Return how many updates had been applied by each read; a read at the moment of its own update is before it."""
    version = np.zeros(read.size, dtype=np.int64)
    applied = parts["status"] == APPLIED
    for one in np.unique(parts["replica"]):
        rows = parts["replica"] == one
        first = np.full(int(parts["update"][rows].max(initial=-1)) + 1, np.nan)
        first[parts["update"][rows & applied]] = apply[rows & applied]
        version[rows] = np.searchsorted(first, read[rows], side="right")
    limit = np.where(applied, parts["update"], np.iinfo(np.int64).max)
    return np.minimum(version, limit)


# --- the trace ----------------------------------------------------------------------------------------------------


def _trace(path: str | Path, parts: dict[str, np.ndarray], workers: int, seed: int) -> Trace:
    """Put rows in a trace's order, number what is not numbered, and check."""
    rows = parts["update"].size
    parts = {"replica": np.zeros(rows, dtype=np.int64), "status": np.full(rows, APPLIED, dtype=np.int8), **parts}
    replicas, replica = np.unique(parts["replica"], return_inverse=True)
    parts = _sorted(parts, np.lexsort((np.arange(rows), *_row_keys(parts), replica.reshape(-1))))
    updates = [int(parts["update"][parts["replica"] == one].max()) + 1 for one in replicas]
    if "draw" not in parts:
        order = np.lexsort((np.arange(rows), parts["read_version"], parts["worker"], parts["replica"]))
        parts["draw"] = np.empty(rows, dtype=np.int64)
        parts["draw"][order] = _count_from_zero(parts["replica"][order], parts["worker"][order])
        keys = _row_keys(parts)  # ties in time are in order of worker and draw
        parts = _sorted(parts, np.lexsort((np.arange(rows), *keys, parts["replica"])))
    order = np.lexsort((parts["draw"], parts["worker"], parts["replica"]))
    expected = _count_from_zero(parts["replica"][order], parts["worker"][order])
    try:
        return Trace(
            parts,
            seed=seed,
            workers=workers,
            updates=updates,
            replicas=replicas,
            consecutive_draws=bool((parts["draw"][order] == expected).all()),
        )
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _sorted(parts: Mapping[str, np.ndarray], order: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[order] for name, column in parts.items()}


def _row_keys(parts: dict[str, np.ndarray]) -> Iterable[np.ndarray]:
    """Return the keys that order the rows of a replica, least important first, as `numpy.lexsort` wants them."""
    keys = order_keys({"draw": np.arange(parts["update"].size), **parts})
    if keys is not None:
        return reversed(keys)
    # Without all times: by update, and a gradient that went into none stays behind the rows it stands behind.
    return (np.where(parts["update"] >= 0, parts["update"], np.maximum.accumulate(parts["update"])),)


def _count_from_zero(replica: np.ndarray, worker: np.ndarray) -> np.ndarray:
    """Return 0, 1, 2, … within each run of equal (replica, worker)."""
    new = np.ones(worker.size, dtype=bool)
    new[1:] = (np.diff(replica) != 0) | (np.diff(worker) != 0)
    starts = np.flatnonzero(new)
    return np.arange(worker.size) - np.repeat(starts, np.diff([*starts.tolist(), worker.size]))
