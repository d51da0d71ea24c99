"""The trace: which worker read which version of the model, and which update its gradient went into.

`docs/trace.md` specifies the table, its rules and the model that they describe. A `Trace` is checked once, when it is
built, and then frozen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

#: Kinds of simultaneous events, in the order in which they happen.
APPLY, ARRIVE, HOP, COMPUTED, RECEIVE, CRASH, RETURN = range(7)

#: What can become of a gradient; the position is the code that the column holds.
STATUSES = ("applied", "discarded", "cancelled", "lost")
APPLIED, DISCARDED, CANCELLED, LOST = range(4)

REQUIRED = {
    "replica": np.int32,
    "worker": np.int32,
    "draw": np.int64,
    "read_version": np.int64,
    "update": np.int64,
    "status": np.int8,
}
TIMES = ("read_time", "start_time", "done_time", "arrive_time", "apply_time")
OPTIONAL = dict.fromkeys(TIMES, np.float64) | {"bytes_up": np.int64, "bytes_down": np.int64, "block": np.int32}
COLUMNS = REQUIRED | OPTIONAL
#: Rows from which on the compiled check pays for being loaded.
QUICK_FROM = 2000


class Row(NamedTuple):
    """One gradient as a method and a problem see it: the address of its randomness and its place in the schedule.

    Each field is a number, or, when replicas run as a batch, an array with one number per replica.
    """

    seed: int
    replica: Any
    worker: Any
    draw: Any
    update: Any = -1
    staleness: Any = 0
    block: Any = -1


class Wasted(NamedTuple):
    """Gradients that were computed and not applied, in any order: arrays with one entry per gradient.

    Those with `lost` were lost on their way to the server, the others discarded there.
    """

    worker: np.ndarray
    draw: np.ndarray
    read_version: np.ndarray
    block: np.ndarray
    lost: np.ndarray


class UpdateRows(NamedTuple):
    """The gradients of one update of one replica, as a source hands them to `on_update`.

    `worker`, `draw`, `read_version` and `block` are arrays with one entry per gradient, in order of arrival.
    `oldest_read` is the oldest version that a gradient still on its way was computed from. `reads` has the version of
    each block, shape (gradients, blocks), where reads mix versions. `wasted` has the gradients whose fate was settled
    since the update before and that were computed for nothing; it is None where the source does not tell of them. A
    source that does counts in `oldest_read` those that will be wasted, too.
    """

    replica: int
    update: int
    time: float
    worker: np.ndarray
    draw: np.ndarray
    read_version: np.ndarray
    block: np.ndarray
    oldest_read: int
    reads: np.ndarray | None = None
    wasted: Wasted | None = None


class Before(NamedTuple):
    """What the rules must know of the rows before, where only a part of a replica is checked.

    `times` are those of updates `base`, `base` + 1, …: of all that the part applies or that a worker may still have
    read, NaN where not known yet. `last` is the row before, as columns of length one; `newest` the newest update so
    far.
    """

    rows: int
    last: Mapping[str, np.ndarray]
    newest: int
    next_draw: np.ndarray
    base: int
    times: np.ndarray


class TraceError(ValueError):
    """A table that breaks a rule of docs/trace.md; the message names the rule and the first row that breaks it."""


class Trace:
    """A checked, frozen table of gradients.

    Parameters
    ----------
    columns
        Arrays by column name, all of one length; see docs/trace.md for names and types.
    seed, workers
        The seed that addresses the trace's randomness, and the number of workers M.
    updates
        Number of updates T_r of each replica, in the order of `replicas`.
    replicas
        Identifiers of the replicas; 0 … R−1 if left out.
    events
        Rows (replica, time, worker, kind) of barriers and stops (worker −1), and of a worker's crash and return.
    consecutive_draws
        False for imported traces, whose draws per worker only have to increase.
    reads
        The version of every block that each gradient was computed from, shape (rows, blocks), where reads mix versions.
    copy
        False to take the arrays over where their types fit; whoever made them must not write to them any more.

    >>> columns = dict(replica=[0, 0], worker=[0, 1], draw=[0, 0], read_version=[0, 0], update=[0, 1], status=[0, 0])
    >>> Trace(columns, seed=7, workers=2, updates=[2]).staleness().tolist()
    [0, 1]
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        *,
        seed: int,
        workers: int,
        updates: Any,
        replicas: Any = None,
        events: Any = (),
        consecutive_draws: bool = True,
        reads: Any = None,
        copy: bool = True,
    ):
        unknown = set(columns) - set(COLUMNS)
        missing = set(REQUIRED) - set(columns)
        if unknown or missing:
            raise TraceError(f"columns: unknown {sorted(unknown)}, missing {sorted(missing)}; known: {list(COLUMNS)}")
        given = {name: kind for name, kind in COLUMNS.items() if name in columns}
        self._columns = {name: frozen(columns[name], kind, name, copy=copy) for name, kind in given.items()}
        self.seed = int(seed)
        self.workers = int(workers)
        self.updates = frozen(updates, np.int64, "updates")
        count = np.arange(self.updates.size) if replicas is None else replicas
        self.replicas = frozen(count, np.int32, "replicas")
        self.events = tuple((int(r), float(t), int(w), str(kind)) for r, t, w, kind in events)
        self.consecutive_draws = bool(consecutive_draws)
        self.before: Before | None = None
        self.reads = None if reads is None else frozen(reads, np.int64, "reads", copy=copy, dimensions=2)
        check(self)

    @classmethod
    def excerpt(cls, trace: Any, columns: Mapping[str, np.ndarray], places: Any, before: Before | None = None) -> Trace:
        """Return rows of a trace as a table of their own, unchecked; `places` are those of their replicas."""
        part = cls.__new__(cls)
        part._columns = {name: columns[name] for name in COLUMNS if name in columns}
        part.seed, part.workers, part.events = trace.seed, trace.workers, ()
        part.updates, part.replicas = trace.updates[places], trace.replicas[places]
        part.consecutive_draws, part.before, part.reads = trace.consecutive_draws, before, None
        return part

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a column, read-only."""
        if name not in self._columns:
            raise KeyError(f"the trace has no column '{name}'; it has: {', '.join(self._columns)}")
        return self._columns[name]

    def __contains__(self, name: str) -> bool:
        """Say whether the trace has this column."""
        return name in self._columns

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._columns["replica"].size)

    def __repr__(self) -> str:
        """Describe the trace in one line."""
        return (
            f"{type(self).__name__}({len(self):,} gradients, {self.workers} workers, {self.replicas.size} replicas, "
            f"{int(self.updates.sum()):,} updates, seed {self.seed})"
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the trace has."""
        return tuple(self._columns)

    @cached_property
    def has_times(self) -> bool:
        """Whether the trace says when its updates were applied."""
        if "apply_time" not in self:
            return False
        return any(not np.isnan(part["apply_time"]).all() for part in self.parts("apply_time"))

    def staleness(self, *, warmup: int = 0) -> np.ndarray:
        """Return the staleness, update − read_version, of every applied gradient, leaving out `warmup` updates."""
        used = (self["status"] == APPLIED) & (self["update"] >= warmup)
        return self["update"][used] - self["read_version"][used]

    def parts(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """Yield these columns, part by part where the trace is too long to be held: here all of it at once."""
        yield {name: self[name] for name in names}

    def rows_of(self, replica: int) -> slice:
        """Return where the rows of a replica stand."""
        column = self["replica"]
        key = column.dtype.type(replica)  # a key of another type would have the whole column converted
        return slice(int(column.searchsorted(key, "left")), int(column.searchsorted(key, "right")))

    def slices(self) -> Iterator[tuple[int, int, slice]]:
        """Yield (replica, its number of updates, its rows) in order."""
        for replica, count in zip(self.replicas.tolist(), self.updates.tolist(), strict=True):
            yield replica, count, self.rows_of(replica)

    def last_time(self) -> float:
        """Return the latest time at which an update was applied or a gradient settled; 0 where there is no row."""
        latest = [np.nanmax(part["apply_time"]) for part in self.parts("apply_time") if part["apply_time"].size]
        return float(np.nanmax(latest)) if latest else 0.0

    def times_of(self, updates: np.ndarray) -> np.ndarray:
        """Return the time of one update of each replica, NaN where unknown; shape (replicas,)."""
        times = np.full(self.replicas.size, np.nan)
        if "apply_time" in self:
            for part in self.parts("replica", "status", "update", "apply_time"):
                place = np.searchsorted(self.replicas, part["replica"])
                asked = (part["status"] == APPLIED) & (part["update"] == updates[place])
                times[place[asked]] = part["apply_time"][asked]
        return times

    def version_times(self, replica: int, versions: np.ndarray) -> np.ndarray:
        """Return the time at which each of these versions of a replica came to be, NaN where unknown."""
        start = 0.0 if self.has_times else np.nan
        return np.concatenate([[start], self.update_times(replica)])[versions]

    def versions_at(self, replica: int, times: np.ndarray) -> np.ndarray | None:
        """Return the version that a replica has at each of these times; None where its updates' times are unknown."""
        known = self.update_times(replica)
        return None if np.isnan(known).any() or not self.has_times else np.searchsorted(known, times, side="right")

    def update_times(self, replica: int) -> np.ndarray:
        """Return the time of each update of a replica, NaN where unknown; shape (updates,)."""
        place = int(np.flatnonzero(self.replicas == replica)[0])
        times = np.full(int(self.updates[place]), np.nan)
        if "apply_time" in self:
            rows = self.rows_of(replica)
            applied = self["status"][rows] == APPLIED
            times[self["update"][rows][applied]] = self["apply_time"][rows][applied]
        return times

    def to_frame(self) -> Any:
        """Return the table as a pandas DataFrame, `status` as a category, with the derived column `staleness`."""
        import pandas as pd

        frame = pd.DataFrame({name: np.array(self[name]) for name in self.columns})
        frame["status"] = pd.Categorical.from_codes(frame["status"], categories=pd.Index(STATUSES))
        staleness = self["update"] - self["read_version"]
        frame["staleness"] = pd.array(staleness, dtype="Int64")
        frame.loc[np.asarray(self["status"] != APPLIED), "staleness"] = pd.NA
        return frame

    def sha256(self) -> str:
        """Return the hash of what the trace says: its columns, seed, workers, updates and events, not its file."""
        digest = hashlib.sha256()
        for name in self.columns:
            digest.update(name.encode())
            for part in self.parts(name):
                digest.update(np.ascontiguousarray(part[name], dtype=part[name].dtype.newbyteorder("<")).data)
        if self.reads is not None:
            digest.update(b"reads")
            digest.update(np.ascontiguousarray(self.reads, dtype="<i8").data)
        digest.update(repr((self.seed, self.workers, self.updates.tolist(), self.replicas.tolist())).encode())
        digest.update(repr(self.events).encode())
        return digest.hexdigest()


def frozen(values: Any, kind: Any, name: str, *, copy: bool = True, dimensions: int = 1) -> np.ndarray:
    """Return a column of numbers of this kind that cannot be written to; refuse numbers that do not fit."""
    array = np.asarray(values)
    if array.ndim != dimensions:
        said = "one dimension" if dimensions == 1 else f"{dimensions} dimensions"
        raise TraceError(f"column {name}: must have {said}, has {array.ndim}")
    if np.dtype(kind).kind == "i" and array.size and not np.can_cast(array.dtype, kind, casting="safe"):
        exact = array.dtype.kind in "iu" and array.min() >= np.iinfo(kind).min and array.max() <= np.iinfo(kind).max
        if not exact:
            raise TraceError(f"column {name}: must hold whole numbers that fit {np.dtype(kind).name}")
    column = np.array(array, dtype=kind) if copy else np.asarray(array, dtype=kind).view()
    column.flags.writeable = False
    return column


# --- the rules, in the order of docs/trace.md ---------------------------------------------------------------------


def check(trace: Trace) -> None:
    """Check every rule of docs/trace.md; the first one that a row breaks is raised as a `TraceError`."""
    _same_length(trace)
    if not _surely_kept(trace):
        for rule in RULES[1:]:
            rule(trace)
    else:
        _blocks_agree(trace)


def _surely_kept(trace: Trace) -> bool:
    """Say whether the quick compiled pass is sure that every rule is kept; it may only be where all times are known."""
    if not trace.consecutive_draws or not all(name in trace for name in TIMES) or len(trace) < QUICK_FROM:
        return False
    from asyncsim.rules import surely_kept

    names = ("replica", "worker", "draw", "read_version", "update", "status", *TIMES)
    return bool(surely_kept(trace.replicas, trace.updates, trace.workers, *(trace[name] for name in names)))


def _refuse(trace: Trace, rule: int, bad: np.ndarray, message: str) -> None:
    """Raise the error of `rule` where any row is bad."""
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        shown = ", ".join(f"{name}={trace[name][row]}" for name in trace.columns)
        number = row if trace.before is None else trace.before.rows + row
        raise TraceError(f"rule {rule}: {message} (row {number}: {shown})")


def _same_length(trace: Trace) -> None:
    sizes = {name: trace[name].size for name in trace.columns}
    if len(set(sizes.values())) > 1:
        raise TraceError(f"rule 1: columns must have one length, got {sizes}")
    if trace.replicas.size != trace.updates.size or (np.diff(trace.replicas) <= 0).any():
        raise TraceError("rule 1: replicas must increase and each have its number of updates")
    if trace.workers < 1 or (trace.updates < 0).any():
        raise TraceError("rule 1: at least one worker, and no negative number of updates")


def _ranges(trace: Trace) -> None:
    _refuse(trace, 2, ~np.isin(trace["replica"], trace.replicas), "replica is not one of the trace's")
    _refuse(trace, 2, (trace["worker"] < 0) | (trace["worker"] >= trace.workers), "worker must be 0 … workers − 1")
    _refuse(trace, 2, trace["draw"] < 0, "draw must not be negative")
    _refuse(trace, 2, (trace["status"] < 0) | (trace["status"] >= len(STATUSES)), f"status must be one of {STATUSES}")


def _time_order(trace: Trace) -> None:
    times = [trace[name] for name in TIMES if name in trace]
    for column, name in zip(times, (name for name in TIMES if name in trace), strict=True):
        _refuse(trace, 3, np.isinf(column), f"{name} must be finite or NaN")
    latest = np.full(len(trace), -np.inf)
    for column in times:
        _refuse(trace, 3, column < latest, "times must satisfy read ≤ start ≤ done ≤ arrive ≤ apply")
        latest = np.where(np.isnan(column), latest, column)


def _row_order(trace: Trace) -> None:
    columns = {name: trace[name] for name in trace.columns}
    skip = 0
    if trace.before is not None and trace.before.last:
        columns = {name: np.concatenate([trace.before.last[name], column]) for name, column in columns.items()}
        skip = columns["draw"].size - len(trace)
    mixed = np.diff(columns["replica"], prepend=-(2**31)) < 0
    _refuse(trace, 4, mixed[skip:], "rows must be grouped by increasing replica")
    same = np.diff(columns["replica"], prepend=-1) == 0
    keys = order_keys(columns)
    if keys is None:
        applied = np.where(columns["status"] == APPLIED, columns["update"], -1)
        if skip:
            assert trace.before is not None
            applied[0] = trace.before.newest
        behind = same & (applied >= 0) & (applied < _running_maximum(applied, same))
        _refuse(trace, 4, behind[skip:], "without times, rows must follow their updates")
        return
    before = np.zeros(same.size, dtype=bool)
    tied = same.copy()
    for key in keys:
        step = np.diff(key, prepend=key[:1])
        before |= tied & (step < 0)
        tied &= step == 0
    before |= tied  # equal in everything, the draw included: the same gradient twice
    _refuse(trace, 4, before[skip:], "rows must be in order of arrival, ties by kind, worker and draw")


def order_keys(trace: Trace | Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    """Return the keys (time, kind, worker, draw) that order the rows of a replica; None where times are unknown."""
    if "arrive_time" not in trace or "apply_time" not in trace:
        return None
    arrive, settled = trace["arrive_time"], trace["apply_time"]
    time = np.where(np.isnan(arrive), settled, arrive)
    if np.isnan(time).any():
        return None
    kind = np.where(np.isnan(arrive), RECEIVE, ARRIVE)
    return [time, kind, np.asarray(trace["worker"]), np.asarray(trace["draw"])]


def _running_maximum(values: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Return the largest earlier value of the same replica, at each row."""
    out = np.empty_like(values)
    starts = np.flatnonzero(~same)
    for low, high in zip(starts, np.append(starts, values.size)[1:], strict=True):
        out[low:high] = np.maximum.accumulate(values[low:high])
    return out


def _versions(trace: Trace) -> None:
    applied = trace["status"] == APPLIED
    _refuse(trace, 5, trace["read_version"] < 0, "read_version must not be negative")
    _refuse(trace, 5, applied & (trace["update"] < 0), "an applied gradient must name its update")
    _refuse(trace, 5, ~applied & (trace["update"] != -1), "a gradient that was not applied has update −1")
    _refuse(trace, 5, applied & (trace["read_version"] > trace["update"]), "read_version must not exceed update")
    limits = trace.updates[np.searchsorted(trace.replicas, trace["replica"])] if len(trace) else np.empty(0)
    _refuse(
        trace, 5, trace["read_version"] >= np.maximum(limits, 1), "read_version must be below the replica's updates"
    )
    _refuse(trace, 5, trace["update"] >= limits, "update must be below the replica's number of updates")


def _no_gaps(trace: Trace) -> None:
    if trace.before is not None:
        return  # seen only when the replica is over
    for replica, count, rows in trace.slices():
        used = trace["update"][rows][trace["status"][rows] == APPLIED]
        missing = np.flatnonzero(np.bincount(used, minlength=count)[:count] == 0)
        if missing.size:
            refuse_gap(replica, count, int(missing[0]))


def refuse_gap(replica: int, count: int, missing: int) -> None:
    """Raise the error of rule 6."""
    raise TraceError(f"rule 6: updates must count 0 … {count - 1}: replica {replica} lacks update {missing}")


def _draws(trace: Trace) -> None:
    order = np.lexsort((trace["draw"], trace["worker"], trace["replica"]))
    draw = trace["draw"][order]
    new = (np.diff(trace["worker"][order], prepend=-1) != 0) | (np.diff(trace["replica"][order], prepend=-(2**31)) != 0)
    step = np.diff(draw, prepend=-1)
    bad = np.zeros(len(trace), dtype=bool)
    if trace.consecutive_draws:
        first = 0 if trace.before is None else trace.before.next_draw[trace["worker"][order]]
        bad[order] = np.where(new, draw != first, step != 1)
        _refuse(trace, 7, bad, "draws of a worker must count 0, 1, 2, …")
    else:
        bad[order] = ~new & (step <= 0)
        _refuse(trace, 7, bad, "draws of a worker must be distinct")


def _one_time_per_update(trace: Trace) -> None:
    if "apply_time" not in trace:
        return
    for replica, count, rows in trace.slices():
        applied = trace["status"][rows] == APPLIED
        update, time = trace["update"][rows][applied], trace["apply_time"][rows][applied]
        base, first = (0, np.full(count, np.nan)) if trace.before is None else (trace.before.base, trace.before.times)
        update -= base
        first[update] = np.where(np.isnan(first[update]), time, first[update])
        unequal = (first[update] != time) & ~(np.isnan(first[update]) & np.isnan(time))
        if unequal.any():
            raise TraceError(f"rule 8: replica {replica}: update {base + update[unequal][0]} has two apply times")
        known = first[~np.isnan(first)]
        if (np.diff(known) < 0).any():
            raise TraceError(f"rule 8: replica {replica}: apply times must not decrease from update to update")


def _reads_agree(trace: Trace) -> None:
    if "read_time" not in trace or "apply_time" not in trace:
        return
    bad = np.zeros(len(trace), dtype=bool)
    for replica, _, rows in trace.slices():
        base, times = (0, trace.update_times(replica)) if trace.before is None else _known_times(trace.before)
        read, version = trace["read_time"][rows], trace["read_version"][rows] - base
        if np.isnan(times).any():
            continue
        fewest, most = np.searchsorted(times, read, side="left"), np.searchsorted(times, read, side="right")
        bad[rows] = ~np.isnan(read) & ((version < fewest) | (version > most))
    _refuse(trace, 9, bad, "read_version must be the number of updates applied by read_time")


def _known_times(before: Before) -> tuple[int, np.ndarray]:
    """Return the first update of which the time is known, and the times from there to the last one known."""
    known = np.flatnonzero(~np.isnan(before.times))
    return before.base, before.times[: known[-1] + 1 if known.size else 0]


def _blocks_agree(trace: Trace) -> None:
    if trace.reads is None:
        return
    if trace.reads.shape[0] != len(trace) or trace.reads.shape[1] == 0:
        raise TraceError(f"rule 10: reads must have a row for each gradient, got shape {trace.reads.shape}")
    version, update = trace["read_version"], trace["update"]
    lowest, highest = trace.reads.min(axis=1), trace.reads.max(axis=1)
    _refuse(trace, 10, lowest < version, "no block may be older than read_version")
    _refuse(trace, 10, (update >= 0) & (highest > update), "no block may be newer than the update")


RULES = (
    _same_length,
    _ranges,
    _time_order,
    _row_order,
    _versions,
    _no_gaps,
    _draws,
    _one_time_per_update,
    _reads_agree,
    _blocks_agree,
)
