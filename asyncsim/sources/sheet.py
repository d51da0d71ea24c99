"""A user's CSV or Parquet file as columns, and how to say in an error where a value stands."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from asyncsim.spec import shown
from asyncsim.trace import TraceError

#: The largest whole number that a float holds exactly.
LARGEST = 2**53


class Sheet:
    """A file's columns by name, and how to say where a value stands in it."""

    def __init__(self, path: str | Path):
        """Read the file; raise `TraceError` where it is none."""
        self.path, self.has_header = path, True
        if not Path(path).is_file():
            raise TraceError(f"{path}: {'is a folder' if Path(path).is_dir() else 'no such file'}")
        if Path(path).suffix == ".parquet":
            self._read_parquet()
        else:
            self._read_csv()
        if not self.size:
            raise TraceError(f"{path}: has no rows")

    def _read_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.path)
        except (pa.ArrowException, OSError) as error:
            raise TraceError(f"{self.path}: not a parquet file: {' '.join(str(error).split())}") from None
        self.names = table.column_names
        self.columns = {name: table.column(name).to_pandas().to_numpy() for name in self.names}
        self.size, self.lines = table.num_rows, np.arange(table.num_rows)
        self.unit = "row"

    def _read_csv(self) -> None:
        try:
            with open(self.path, newline="", encoding="utf-8-sig") as handle:
                reader = csv.reader(handle)
                rows = [(reader.line_num, row) for row in reader if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise TraceError(f"{self.path}: not a csv file: {error}") from None
        if not rows:
            raise TraceError(f"{self.path}: is empty")
        width = len(rows[0][1])
        self.has_header = not all(is_number(cell) for cell in rows[0][1])
        self.names = [cell.strip() for cell in rows.pop(0)[1]] if self.has_header else [str(i) for i in range(width)]
        for line, row in rows:
            if len(row) != width:
                raise TraceError(f"{self.path}: line {line}: has {len(row)} columns, the first line has {width}")
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise TraceError(f"{self.path}: two columns are named '{twice[0]}'")
        cells = list(zip(*(row for _, row in rows), strict=True)) or [()] * width
        self.columns = {
            name: np.array([cell.strip() for cell in column], dtype=object)
            for name, column in zip(self.names, cells, strict=True)
        }
        self.size, self.lines = len(rows), np.array([line for line, _ in rows], dtype=np.int64)
        self.unit = "line"

    def refuse(self, bad: np.ndarray, name: str, must: str) -> None:
        """Raise the error of the first bad value of a column."""
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            value = self.columns[name][row]
            said = "nothing" if is_blank(value) else shown(value.item() if isinstance(value, np.generic) else value)
            raise TraceError(f"{self.path}: {self.unit} {self.lines[row]}, column '{name}': {must}, got {said}")

    def numbers(self, name: str, *, blank: bool) -> np.ndarray:
        """Return a column as float64, NaN where nothing stands (if that is allowed); all else must be finite."""
        column = self.columns[name]
        if column.dtype.kind in "iufb":
            values = column.astype(np.float64)
            absent = np.isnan(values)
        else:
            absent = np.array([is_blank(cell) for cell in column], dtype=bool)
            wrong = ~absent & ~np.array([is_number(cell) for cell in column], dtype=bool)
            self.refuse(wrong, name, "must be a number")
            values = np.full(column.size, np.nan)
            values[~absent] = column[~absent].astype(np.float64)
        self.refuse(np.isinf(values) | (np.isnan(values) & ~absent), name, "must be finite")
        if not blank:
            self.refuse(absent, name, "must be a number")
        return values

    def whole(self, name: str, *, least: int = 0, blank: bool = False) -> np.ndarray:
        """Return a column of whole numbers, −1 where nothing stands (if that is allowed)."""
        values = self.numbers(name, blank=blank)
        known = ~np.isnan(values)
        bad = known & ((values != np.floor(values)) | (values < least) | (values > LARGEST))
        self.refuse(bad, name, f"must be a whole number from {least}")
        return np.where(known, values, -1.0).astype(np.int64)


def is_blank(cell: Any) -> bool:
    """Say whether a cell holds nothing."""
    return cell is None or (isinstance(cell, float) and np.isnan(cell)) or str(cell).strip().lower() in ("", "nan")


def is_number(cell: Any) -> bool:
    """Say whether a cell can be read as a number."""
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True
