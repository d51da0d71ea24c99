"""Traces that are too long to be held: written to a file row group by row group, and read from it in the same way."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyncsim.checking import Checker, replica_parts
from asyncsim.trace import APPLIED, COLUMNS, STATUSES, Trace, TraceError, frozen
from asyncsim.windows import NEEDED

SCHEMA = 1

#: Rows of one Parquet row group.
ROW_GROUP = 1 << 20

#: A trace with more rows is read row group by row group.
LONGEST_IN_MEMORY = 5_000_000


class Facts(NamedTuple):
    """What a trace is beside its rows."""

    seed: int
    workers: int
    updates: np.ndarray
    replicas: np.ndarray
    events: tuple[tuple[int, float, int, str], ...] = ()
    consecutive_draws: bool = True


class TraceWriter:
    """Writes a trace as Parquet, as docs/trace.md describes, from parts of any size; to be closed at the end."""

    def __init__(self, path: str | Path, columns: tuple[str, ...], blocks: int = 0):
        """Begin a file with these columns, and reads of so many blocks; about `ROW_GROUP` rows are held at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = [name for name in COLUMNS if name in columns]
        types = [(name, pa.from_numpy_dtype(COLUMNS[name])) for name in names]
        words = pa.dictionary(pa.int8(), pa.string())
        fields = [(name, words if name == "status" else kind) for name, kind in types]
        self.schema = pa.schema([*fields, ("reads", pa.list_(pa.int64(), blocks))] if blocks else fields)
        # Few different values; a dictionary of the others would be as large as the column.
        repeated = [
            name for name in names if name in ("replica", "worker", "status", "bytes_up", "bytes_down", "block")
        ]
        self.file = pq.ParquetWriter(path, self.schema, store_schema=False, use_dictionary=repeated)
        self.held: list[Mapping[str, np.ndarray]] = []
        self.rows_held = 0

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        """Write rows that follow those written before."""
        self.held.append(columns)
        self.rows_held += columns["worker"].size
        if self.rows_held >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        arrays = []
        for name in self.schema.names:
            pieces = [part[name] for part in self.held]
            piece = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            array = pa.array(piece.reshape(-1))
            if name == "status":
                array = pa.DictionaryArray.from_arrays(array, pa.array(STATUSES))
            elif name == "reads":
                array = pa.FixedSizeListArray.from_arrays(array, piece.shape[1])
            arrays.append(array)
        self.held, self.rows_held = [], 0
        self.file.write_table(pa.Table.from_arrays(arrays, schema=self.schema), row_group_size=ROW_GROUP)

    def close(self, trace: Any) -> None:
        """End the file with the facts about the trace."""
        if self.rows_held:
            self._flush()
        facts = {
            "asyncsim_schema": SCHEMA,
            "seed": trace.seed,
            "workers": trace.workers,
            "updates": np.asarray(trace.updates).tolist(),
            "replicas": np.asarray(trace.replicas).tolist(),
            "events": list(trace.events),
            "consecutive_draws": trace.consecutive_draws,
        }
        about = {"asyncsim": json.dumps(facts)}
        # The number of updates is known only now, so the schema that pyarrow reads is stored by hand, with the facts.
        schema = self.schema.with_metadata(about).serialize().to_pybytes()
        self.file.add_key_value_metadata({**about, "ARROW:schema": base64.b64encode(schema).decode()})
        self.file.close()


@contextlib.contextmanager
def refusing(path: str | Path) -> Iterator[None]:
    """Turn what pyarrow says of a missing or damaged file into a `TraceError`."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except (KeyError, pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise TraceError(f"{path}: not a trace written by asyncsim ({said})") from None


def read_facts(path: str | Path) -> tuple[dict[str, Any], Any]:
    """Return what a trace's file says of the trace as a whole, and its Parquet metadata; `TraceError` if it is none."""
    import pyarrow.parquet as pq

    with refusing(path):
        metadata = pq.read_metadata(path)
        about: dict[str, Any] = json.loads((metadata.metadata or {})[b"asyncsim"])
    if about["asyncsim_schema"] != SCHEMA:
        raise TraceError(f"{path}: has schema {about['asyncsim_schema']}, this asyncsim reads {SCHEMA}")
    return about, metadata


class StoredTrace(Trace):
    """A trace in a file, of which one row group at a time is in memory.

    A replay, a summary and the pictures read its `parts`. Asked for a column as a whole it reads and returns it, and
    does not keep it.

    Parameters
    ----------
    path
        The file, written by `TraceWriter` or `asyncsim.results.write_trace`.
    checked
        True for a file that was checked as it was written; else it is read through once, and `TraceError` names the
        first rule that is broken.
    """

    def __init__(self, path: str | Path, *, checked: bool = False):
        about, metadata = read_facts(path)
        self.path = Path(path)
        self.seed, self.workers = int(about["seed"]), int(about["workers"])
        self.updates = frozen(about["updates"], np.int64, "updates")
        self.replicas = frozen(about["replicas"], np.int32, "replicas")
        self.events = tuple((int(r), float(t), int(w), str(kind)) for r, t, w, kind in about["events"])
        self.consecutive_draws = bool(about["consecutive_draws"])
        self.rows = int(metadata.num_rows)
        self.before = self.reads = None
        self._names = tuple(metadata.schema.to_arrow_schema().names)
        self._bounds = _replica_bounds(metadata)
        if not checked:
            checker = Checker(self)
            for replica, rows in replica_parts(self.parts(*self.columns)):
                checker.check(replica, rows)
            checker.end_before(self.replicas.size)

    def __contains__(self, name: str) -> bool:
        """Say whether the trace has this column."""
        return name in self.columns

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.rows

    def __getitem__(self, name: str) -> np.ndarray:
        """Read a column as a whole."""
        if name not in self:
            raise KeyError(f"the trace has no column '{name}'; it has: {', '.join(self.columns)}")
        return np.concatenate([np.empty(0, dtype=COLUMNS[name]), *(part[name] for part in self.parts(name))])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the trace has."""
        return self._names

    @cached_property
    def _begins(self) -> np.ndarray:
        """Where the rows of each replica begin, and where the last one's end."""
        counts = np.zeros(self.replicas.size, dtype=np.int64)
        for part in self.parts("replica"):
            counts += np.bincount(np.searchsorted(self.replicas, part["replica"]), minlength=counts.size)
        return np.concatenate([[0], np.cumsum(counts)])

    def rows_of(self, replica: int) -> slice:
        """Return where the rows of a replica stand."""
        place = int(np.searchsorted(self.replicas, replica))
        return slice(int(self._begins[place]), int(self._begins[place + 1]))

    def update_times(self, replica: int) -> np.ndarray:
        """Return the time of each update of a replica, NaN where unknown; shape (updates,)."""
        times = np.full(int(self.updates[np.searchsorted(self.replicas, replica)]), np.nan)
        for update, time in self._applied_at(replica):
            times[update] = time
        return times

    def version_times(self, replica: int, versions: np.ndarray) -> np.ndarray:
        """Return the time at which each of these versions of a replica came to be, NaN where unknown."""
        times = np.full(versions.size, np.nan)
        times[versions == 0] = 0.0 if self.has_times else np.nan
        order = np.argsort(versions, kind="stable")
        for update, time in self._applied_at(replica):
            low, high = (np.searchsorted(versions[order], update + 1, side) for side in ("left", "right"))
            for row in np.flatnonzero(low < high):
                times[order[low[row] : high[row]]] = time[row]
        return times

    def versions_at(self, replica: int, times: np.ndarray) -> np.ndarray | None:
        """Return the version that a replica has at each of these times; None where its updates' times are unknown."""
        versions = np.zeros(times.size, dtype=np.int64)
        known = False
        for update, time in self._applied_at(replica):
            known = True
            if np.isnan(time).any():
                return None
            order = np.lexsort((update, time))
            place = np.searchsorted(time[order], times, side="right")
            newest = np.maximum.accumulate(update[order]) + 1
            versions = np.where(place > 0, np.maximum(versions, newest[place - 1]), versions)
        return versions if known or self.has_times else None

    def _applied_at(self, replica: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the updates of a replica and their times, part by part; an update may come more than once."""
        if "apply_time" in self:
            for part in self.parts("replica", "status", "update", "apply_time", replicas=(replica, replica)):
                mine = (part["replica"] == replica) & (part["status"] == APPLIED)
                yield part["update"][mine], part["apply_time"][mine]

    def parts(self, *names: str, replicas: tuple[int, int] | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Yield these columns, row group by row group; of the row groups that may hold replicas first … last only."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            for number, (first, last) in enumerate(self._bounds):
                if replicas is None or (first <= replicas[1] and last >= replicas[0]):
                    with refusing(self.path):
                        table = file.read_row_group(number, columns=list(names))
                    yield as_arrays(table)

    def groups(self) -> Iterator[np.ndarray]:
        """Yield the places of replicas that follow one another and can be held together, of all that can be held."""
        low = 0
        while low < self.replicas.size:
            high = int(np.searchsorted(self._begins, self._begins[low] + LONGEST_IN_MEMORY, side="right")) - 1
            high = min(high, self.replicas.size)
            if high > low:
                yield np.arange(low, high)
            low = max(high, low + 1)

    def of_replicas(self, places: np.ndarray) -> Trace:
        """Return what a replay needs of some replicas, by their places, as a `Trace`."""
        chosen = self.replicas[places]
        names = [name for name in ("replica", "status", *NEEDED, "done_time", "apply_time") if name in self]
        pieces = {name: [np.empty(0, dtype=COLUMNS[name])] for name in names}
        for part in self.parts(*names, replicas=(int(chosen[0]), int(chosen[-1]))):
            mine = np.isin(part["replica"], chosen)
            if mine.any():
                for name, column in part.items():
                    pieces[name].append(column[mine])
        return Trace.excerpt(self, {name: np.concatenate(parts) for name, parts in pieces.items()}, places)

    def applied(self, place: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield the applied rows of a replica in order of update, in parts of whole updates."""
        names = ["replica", "status", *NEEDED, "arrive_time", "apply_time"]
        names = [name for name in names if name in self]
        replica = int(self.replicas[place])
        rest: dict[str, np.ndarray] = {}
        for whose, rows in replica_parts(self.parts(*names, replicas=(replica, replica))):
            if whose != replica:
                continue
            used = np.flatnonzero(rows["status"] == APPLIED)
            used = used[np.argsort(rows["update"][used], kind="stable")]
            part = {name: column[used] for name, column in rows.items()}
            if rest:
                if used.size and part["update"][0] < rest["update"][-1]:
                    raise TraceError(f"{self.path}: too long to be held, and not in the order of its updates")
                part = {name: np.concatenate([rest[name], column]) for name, column in part.items()}
            low = int(np.searchsorted(part["update"], part["update"][-1])) if part["update"].size else 0
            rest = {name: column[low:] for name, column in part.items()}  # the last update may not be whole
            if low:
                yield {name: column[:low] for name, column in part.items()}
        if rest:
            yield rest


def _replica_bounds(metadata: Any) -> list[tuple[int, int]]:
    """Return the smallest and the largest replica of each row group."""
    place = metadata.schema.to_arrow_schema().names.index("replica")
    bounds = []
    for number in range(metadata.num_row_groups):
        found = metadata.row_group(number).column(place).statistics
        known = found is not None and found.has_min_max
        bounds.append((int(found.min), int(found.max)) if known else (-(2**31), 2**31 - 1))
    return bounds


def as_arrays(table: Any) -> dict[str, np.ndarray]:
    """Return the columns of an arrow table as numpy arrays, `status` as codes, `reads` with a column for each block."""
    arrays = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name == "reads":
            arrays[name] = np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
        else:
            arrays[name] = np.asarray(column.indices if name == "status" else column)
    return arrays
