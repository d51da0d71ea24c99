"""Checking a trace part by part: the rules of docs/trace.md in the memory of one part.

From part to part are carried: for each worker its next draw and the newest version that it read, and the time of each
update since the oldest of these versions, because a gradient still to come may have been read there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from asyncsim.trace import APPLIED, RULES, TIMES, Before, Trace, TraceError, order_keys, refuse_gap

Columns = Mapping[str, np.ndarray]


def replica_parts(parts: Iterable[Columns]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield (replica, rows) for a trace that comes in parts of any size, so that rows of one time stay together.

    The rows of a replica follow one another, and those of one time are in order of kind, worker and draw, not of what
    happened first. So a part ends where the time, or the replica, changes.
    """
    rest: dict[str, np.ndarray] = {}
    for part in parts:
        rows = {name: np.concatenate([rest[name], column]) if rest else column for name, column in part.items()}
        bounds = np.flatnonzero(np.diff(rows["replica"])) + 1
        for low, high in zip([0, *bounds], bounds, strict=False):
            yield int(rows["replica"][low]), {name: column[low:high] for name, column in rows.items()}
        low = int(bounds[-1]) if bounds.size else 0
        rest = {name: column[low:] for name, column in rows.items()}
        end = _last_change(rest)
        if end:
            yield int(rest["replica"][0]), {name: column[:end] for name, column in rest.items()}
            rest = {name: column[end:] for name, column in rest.items()}
    if rest and rest["replica"].size:
        yield int(rest["replica"][0]), rest


def _last_change(rows: Columns) -> int:
    """Return where the rows that share the last one's time begin; behind the last where there are no times."""
    keys = order_keys(rows)
    return rows["replica"].size if keys is None else int(np.searchsorted(keys[0], keys[0][-1])) if keys[0].size else 0


class Checker:
    """Checks the rows of a trace, part by part, as `Trace` checks them all at once.

    Parameters
    ----------
    trace
        What is known beforehand: its `workers`, its `replicas`, the most `updates` of each, `consecutive_draws`.

    A part is some rows of one replica, with all columns; rows that share a time must not be parted.
    """

    def __init__(self, trace: Any):
        if not trace.consecutive_draws:
            raise ValueError("draws that need not be consecutive are checked all at once")
        RULES[0](Trace.excerpt(trace, {}, slice(None)))
        self.trace = trace
        self.rows = 0
        self.place = -1
        self.base = 0
        self.next_draw = self.held = self.about_last = np.empty(0, dtype=np.int64)
        self.last_time, self.times, self.seen = np.empty(0), np.empty(0), np.empty(0, dtype=bool)
        self.last: dict[str, np.ndarray] = {}

    def check(self, replica: int, columns: Columns) -> None:
        """Check the next rows of this replica, or the first ones of another; `TraceError` where one breaks a rule."""
        if self.place < 0 or replica != self.trace.replicas[self.place]:
            place = int(np.searchsorted(self.trace.replicas, replica))
            if place <= self.place or place == self.trace.replicas.size or self.trace.replicas[place] != replica:
                self._in_the_open(columns, slice(None))  # says what is wrong
            self.end_before(place)
            self._begin(place, columns)
        self._make_room(columns)
        draws, held, last_time, about_last = (
            self.next_draw.copy(),
            self.held.copy(),
            self.last_time.copy(),
            self.about_last.copy(),
        )
        if not self._surely_kept(columns):
            self.next_draw, self.held, self.last_time, self.about_last = draws, held, last_time, about_last
            self._in_the_open(columns, slice(self.place, self.place + 1))
            self._take_note(columns)
        applied = columns["update"][columns["status"] == APPLIED]
        self.seen[applied - self.base] = True
        self.rows += columns["worker"].size
        self.last = {name: column[-1:] for name, column in columns.items()}

    def end_before(self, place: int) -> None:
        """End the replicas before this place, of which some may have had no rows."""
        while self.place < place:
            if self.place >= 0:
                self.end(int(self.trace.updates[self.place]))
            self._begin(self.place + 1, {})

    def end(self, updates: int) -> None:
        """End the replica, which had so many updates."""
        replica = int(self.trace.replicas[self.place])
        seen = np.flatnonzero(self.seen)
        missing = np.flatnonzero(~self.seen[: updates - self.base])
        if missing.size or self.seen.size < updates - self.base:
            refuse_gap(replica, updates, self.base + int(missing[0] if missing.size else self.seen.size))
        if seen.size and self.base + seen[-1] >= updates:
            raise TraceError(f"rule 5: replica {replica}: update must be below the replica's number of updates")
        if self.held.max() >= max(updates, 1):
            raise TraceError(f"rule 5: replica {replica}: read_version must be below the replica's updates")

    def _begin(self, place: int, columns: Columns) -> None:
        from asyncsim.rules import CARRIED

        workers = self.trace.workers
        self.place, self.base = place, 0
        self.next_draw, self.held = np.zeros(workers, dtype=np.int64), np.zeros(workers, dtype=np.int64)
        self.last_time, self.about_last = np.full(1, -np.inf), np.full(CARRIED, -1)
        self.times, self.seen = np.empty(0), np.empty(0, dtype=bool)
        self.last = {name: column[:0] for name, column in columns.items()}

    def _make_room(self, columns: Columns) -> None:
        """Let go of the times of updates that no gradient to come can need, and make room for the part's."""
        gone = min(max(int(self.held.min()) - 1 - self.base, 0), self.times.size)
        count = int(self.trace.updates[self.place])
        if not self.seen[:gone].all():
            refuse_gap(int(self.trace.replicas[self.place]), count, self.base + int(self.seen.argmin()))
        newest = int(columns["update"].max(initial=-1))
        needed = min(newest + 1, count) - self.base
        if needed > self.times.size or gone > self.times.size // 2:
            kept = slice(gone, self.times.size)
            self.base += gone
            size = max(needed - gone, 0)
            size = max(min(size + size // 4, count - self.base), self.times.size - gone)
            times, seen = np.full(size, np.nan), np.zeros(size, dtype=bool)
            times[: kept.stop - kept.start] = self.times[kept]
            seen[: kept.stop - kept.start] = self.seen[kept]
            self.times, self.seen = times, seen

    def _surely_kept(self, columns: Columns) -> bool:
        if not all(name in columns for name in TIMES):
            return False
        from asyncsim.rules import part_kept

        names = ("worker", "draw", "read_version", "update", "status", *TIMES)
        state = (self.times, self.next_draw, self.held, self.last_time, self.about_last)
        return bool(part_kept(self.trace.workers, self.base, *state, *(columns[name] for name in names)))

    def _in_the_open(self, columns: Columns, places: slice) -> None:
        """Check the part by the rules of `asyncsim.trace`, which say what is wrong and where."""
        from asyncsim.rules import NEWEST

        if self.place < 0:
            self._begin(0, columns)
        newest = int(self.about_last[NEWEST])
        before = Before(self.rows, self.last, newest, self.next_draw, self.base, self.times)
        part = Trace.excerpt(self.trace, columns, places, before)
        for rule in RULES[1:]:
            rule(part)

    def _take_note(self, columns: Columns) -> None:
        """Carry what `_surely_kept` would have."""
        from asyncsim.rules import LAST_DRAW, LAST_KIND, LAST_WORKER, NEWEST, NEWEST_BEFORE

        np.maximum.at(self.next_draw, columns["worker"], columns["draw"] + 1)
        np.maximum.at(self.held, columns["worker"], columns["read_version"])
        newest = max(int(self.about_last[NEWEST]), int(columns["update"].max(initial=-1)))
        self.about_last[[NEWEST_BEFORE, NEWEST]] = newest
        keys = order_keys({name: column[-1:] for name, column in columns.items()})
        if keys is not None:
            self.last_time[:] = keys[0]
            self.about_last[[LAST_KIND, LAST_WORKER, LAST_DRAW]] = np.concatenate(keys[1:])
