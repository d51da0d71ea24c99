"""Reading one column of numbers from a user's csv or parquet file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from asyncsim.spec import refuse


def read_column(file: str, column: str | int | None = None) -> np.ndarray:
    """Return one column of a csv or parquet file as float64.

    `column` is a name from the header, or a number counted from 0; it may be left out where there is only one.
    Errors name the file, the column, and what there is.
    """
    if Path(file).suffix == ".parquet":
        return _parquet_column(file, column)
    with open(file, newline="", encoding="utf-8-sig") as handle:
        try:
            rows = [row for row in csv.reader(handle) if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise refuse(f"{file}: not a csv file: {error}") from error
    if not rows:
        raise refuse(f"{file}: is empty")
    header = None if all(_is_number(cell) for cell in rows[0]) else [cell.strip() for cell in rows.pop(0)]
    place = _place(file, column, header, len(rows[0]) if rows else len(header or []))
    try:
        values = np.array([float(row[place]) for row in rows])
    except (ValueError, IndexError):
        line = next(i for i, row in enumerate(rows) if len(row) <= place or not _is_number(row[place]))
        raise refuse(f"{file}: line {line + 1 + (header is not None)}: no number in column {place}") from None
    if not values.size:
        raise refuse(f"{file}: has a header but no rows")
    return values


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _place(file: str, column: str | int | None, header: list[str] | None, width: int) -> int:
    """Return the number of the asked column."""
    if column is None and width == 1:
        return 0
    if isinstance(column, int) and 0 <= column < width:
        return column
    if isinstance(column, str) and header and column in header:
        return header.index(column)
    have = ", ".join(header) if header else f"no header, columns 0 … {width - 1}"
    if column is None:
        raise refuse(f"{file}: has several columns, so 'column' must say which; there is: {have}")
    raise refuse(f"{file}: column {column!r} not found; there is: {have}")


def _parquet_column(file: str, column: str | int | None) -> np.ndarray:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, ValueError) as error:
        raise refuse(f"{file}: not a parquet file: {error}") from error
    place = _place(file, column, table.column_names, table.num_columns)
    return np.asarray(table.column(place).to_numpy(), dtype=np.float64)
