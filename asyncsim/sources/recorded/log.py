"""What a real run leaves behind: the rows of its trace, and a checksum of every version of the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncsim.trace import APPLIED, COLUMNS, TIMES, order_keys

#: Columns of a row, in order.
FIELDS = ("worker", "draw", "read_version", "update", "status", *TIMES)


class Log:
    """One replica of a real run as it is recorded; times are seconds of `time.monotonic`."""

    def __init__(self, replica: int):
        self.replica = replica
        self.begin = 0.0
        self.rows: list[tuple[Any, ...]] = []
        self.events: list[tuple[float, int, str]] = []
        self.checksums: list[int] = []
        self.block_versions: np.ndarray | None = None  # of each row and block, where reads mix versions

    def table(self, unit: float) -> tuple[dict[str, np.ndarray], list[tuple[int, float, int, str]], int]:
        """Return (columns, events, number of updates), times in units of `unit` seconds since the beginning.

        As docs/trace.md says: in order of arrival, nothing settled after the last update, no draw missing. Among the
        columns is "reads" where reads mix versions.
        """
        from asyncsim.sources.table import no_draw_missing

        columns = {
            name: np.array([row[place] for row in self.rows], dtype=COLUMNS[name]) for place, name in enumerate(FIELDS)
        }
        if self.block_versions is not None:
            columns["reads"] = self.block_versions
        for name in TIMES:
            columns[name] = (columns[name] - self.begin) / unit
        applied = columns["status"] == APPLIED
        updates = int(applied.any()) and int(columns["update"][applied].max()) + 1
        end = float(columns["apply_time"][applied].max()) if updates else -np.inf
        columns = {name: column[(columns["apply_time"] <= end)] for name, column in columns.items()}
        keys = order_keys(columns)
        assert keys is not None
        order = np.lexsort(keys[::-1])
        order = order[no_draw_missing(columns["worker"], columns["draw"])[order]]
        events = [(self.replica, (time - self.begin) / unit, worker, kind) for time, worker, kind in self.events]
        return (
            {name: column[order] for name, column in columns.items()},
            [event for event in events if event[1] <= end],
            updates,
        )
