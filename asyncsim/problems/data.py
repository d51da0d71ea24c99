"""Data sets: two that come with scikit-learn, and the user's own files, read and checked.

A data set is a pair (features, targets): float64 of shape (n, p), and numbers or words of shape (n,).
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
from pydantic import BeforeValidator, ValidationInfo

from asyncsim.spec import closest, existing_file, refuse


class Shape(NamedTuple):
    """Numbers of samples, features and classes."""

    samples: int
    features: int
    classes: int


#: The data sets that scikit-learn carries. Their shapes are written here so that nobody loads it to learn a dimension.
BUILT_IN = {"digits": Shape(1797, 64, 10), "breast_cancer": Shape(569, 30, 2)}

#: The shape of one sample of the built-in data sets of pictures.
PICTURES = {"digits": (8, 8)}

#: A file of pictures in the format of the MNIST data; its labels lie beside it.
IDX_PICTURES = re.compile(r"images([-.])idx3-ubyte(\.gz)?$")

LIBSVM_SUFFIXES = (".svm", ".svmlight", ".libsvm", ".txt")
SUFFIXES = (*LIBSVM_SUFFIXES, ".npz", ".csv")

#: Features are held as a dense table; a sparse file that would need more than this is refused.
MAX_BYTES = 4 << 30


def _dataset(value: Any, info: ValidationInfo) -> Any:
    """Accept the name of a built-in data set, or find a file beside the scenario."""
    if not isinstance(value, str | Path) or value in BUILT_IN:
        return value
    if Path(value).suffix.lower() not in SUFFIXES and not IDX_PICTURES.search(str(value)):
        raise refuse(
            f"unknown dataset '{value}'{closest(str(value), list(BUILT_IN))}; "
            f"allowed: {', '.join(BUILT_IN)}, or a file that ends in {', '.join(SUFFIXES)}, images-idx3-ubyte"
        )
    return existing_file(value, info)


#: "digits", "breast_cancer", or a file of LIBSVM lines, an npz file with X and y, a csv file, or idx pictures.
Dataset = Annotated[str, BeforeValidator(_dataset)]


def read(dataset: str, target: str | int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (n, p) and targets (n,) of a built-in data set or a file.

    `target` names the target column of a csv file, or numbers it from 0; the last column if left out. Whatever is
    wrong with a file is refused with one message that names the file and the place.

    >>> features, targets = read("breast_cancer")
    >>> features.shape, targets.shape
    ((569, 30), (569,))
    """
    suffix = Path(dataset).suffix.lower()
    if target is not None and suffix != ".csv":
        raise refuse(f"'target' names a column of a csv file; {dataset} is none")
    if dataset in BUILT_IN:
        return _built_in(dataset)
    try:
        if IDX_PICTURES.search(dataset):
            features, targets = _read_idx_pair(dataset)
        elif suffix == ".npz":
            features, targets = _read_npz(dataset)
        elif suffix == ".csv":
            features, targets = _read_csv(dataset, target)
        else:
            features, targets = _read_libsvm(dataset)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise refuse(f"{dataset}: cannot be read: {error}") from error
    _check(dataset, features, targets)
    return features, targets


@lru_cache
def _built_in(name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    for array in (bunch.data, bunch.target):
        array.flags.writeable = False
    return bunch.data, bunch.target


def _check(file: str, features: np.ndarray, targets: np.ndarray) -> None:
    if features.ndim != 2 or targets.ndim != 1 or len(features) != len(targets):
        raise refuse(
            f"{file}: needs X of shape (samples, features) and y of shape (samples,), "
            f"got {features.shape} and {targets.shape}"
        )
    if not features.size:
        raise refuse(f"{file}: is empty: {features.shape[0]} samples with {features.shape[1]} features")
    bad = np.argwhere(~np.isfinite(features))
    if bad.size:
        row, column = bad[0]
        raise refuse(f"{file}: feature {column} of sample {row} (both counted from 0) is {features[row, column]}")
    if targets.dtype.kind == "f" and not np.isfinite(targets).all():
        row = int(np.flatnonzero(~np.isfinite(targets))[0])
        raise refuse(f"{file}: the target of sample {row} (counted from 0) is {targets[row]}")


def _read_npz(file: str) -> tuple[np.ndarray, np.ndarray]:
    import zipfile

    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = {name: loaded[name] for name in loaded.files} if isinstance(loaded, np.lib.npyio.NpzFile) else {}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise refuse(f"{file}: not an npz file of plain arrays: {error}") from error
    if not {"X", "y"} <= set(arrays):
        raise refuse(f"{file}: needs arrays X and y; it has: {', '.join(arrays) or 'none'}")
    features, targets = arrays["X"], arrays["y"]
    if features.dtype.kind not in "biuf" or targets.dtype.kind not in "biufU":
        raise refuse(f"{file}: X must hold real numbers and y numbers or words, got {features.dtype}, {targets.dtype}")
    return features.astype(np.float64), targets if targets.dtype.kind == "U" else targets.astype(np.float64)


def _read_csv(file: str, target: str | int | None) -> tuple[np.ndarray, np.ndarray]:
    with open(file, newline="", encoding="utf-8-sig") as handle:
        try:
            lines = [(number, list(map(str.strip, row))) for number, row in enumerate(csv.reader(handle), 1) if row]
        except csv.Error as error:
            raise refuse(f"{file}: not a csv file: {error}") from error
    if not lines:
        raise refuse(f"{file}: is empty")
    width = len(lines[0][1])
    # Words may stand in the target column of every row, so a header is a first row without any number.
    header = None if any(_number(cell) is not None for cell in lines[0][1]) else lines.pop(0)[1]
    place = _target_column(file, target, header, width)
    features = np.empty((len(lines), width - 1))
    targets = []
    for row, (number, cells) in enumerate(lines):
        if len(cells) != width:
            raise refuse(f"{file}: line {number} has {len(cells)} columns, the first line has {width}")
        targets.append(cells.pop(place))
        if not targets[-1]:
            raise refuse(f"{file}: line {number} has no target")
        numbers = [_number(cell) for cell in cells]
        if None in numbers:
            raise refuse(f"{file}: line {number}: {cells[numbers.index(None)]!r} is no number")
        features[row] = cast(list[float], numbers)
    values = [_number(cell) for cell in targets]
    return features, np.array(targets if None in values else values)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _target_column(file: str, target: str | int | None, header: list[str] | None, width: int) -> int:
    if target is None:
        return width - 1
    if isinstance(target, int) and 0 <= target < width:
        return target
    if isinstance(target, str) and header and target in header:
        return header.index(target)
    have = ", ".join(header) if header else f"no header, columns 0 … {width - 1}"
    raise refuse(f"{file}: target column {target!r} not found; there is: {have}")


def _read_libsvm(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Read lines ``target index:value index:value … # comment``; indices count from 1, or from 0 if a 0 occurs."""
    targets: list[float] = []
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    with open(file, encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            previous = -1
            try:
                targets.append(float(words[0]))
                pairs = [word.split(":") for word in words[1:] if not word.startswith("qid:")]
                entries = [(int(index), float(value)) for index, value in pairs]
            except ValueError as error:
                raise refuse(f"{file}: line {number}: expected 'target index:value …': {error}") from error
            for index, value in entries:
                if index <= previous:
                    raise refuse(f"{file}: line {number}: indices must increase from 0 or 1, got {index}")
                previous = index
                rows.append(len(targets) - 1)
                columns.append(index)
                values.append(value)
    if not rows:
        raise refuse(f"{file}: is empty: no line holds a feature")
    first = min(1, min(columns))
    shape = (len(targets), max(columns) + 1 - first)
    if 8 * shape[0] * shape[1] > MAX_BYTES:
        raise refuse(f"{file}: {shape[0]} × {shape[1]} numbers are too many: features are held as a dense table")
    features = np.zeros(shape)
    features[rows, np.array(columns) - first] = values
    return features, np.array(targets)


def _read_idx_pair(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the pictures, one a row, and their labels from the file beside them, named in the same way."""
    labels = IDX_PICTURES.sub(r"labels\1idx1-ubyte\2", file)
    if not Path(labels).is_file():
        raise refuse(f"{file}: its labels are missing: no such file: {labels}")
    pictures = _read_idx(file, 3)
    return pictures.reshape(len(pictures), -1).astype(np.float64), _read_idx(labels, 1).astype(np.float64)


def _read_idx(file: str, axes: int) -> np.ndarray:
    """Read an idx file of bytes: 0, 0, 8, the number of axes, the length of each as 4 bytes, then the entries."""
    with (gzip.open if file.endswith(".gz") else open)(file, "rb") as handle:
        content = handle.read()
    head = 4 + 4 * axes
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) < head:
        raise refuse(f"{file}: not an idx file of bytes with {axes} {'axis' if axes == 1 else 'axes'}")
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", axes, 4))
    if len(content) - head != np.prod(shape, dtype=object):
        raise refuse(f"{file}: is cut off: {len(content) - head} entries, its head says {' × '.join(map(str, shape))}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def picture_shape(dataset: str, features: int) -> tuple[int, int]:
    """Return the height and width of the pictures of a data set; square ones where nothing else is known."""
    if dataset in PICTURES:
        return PICTURES[dataset]
    if IDX_PICTURES.search(dataset):
        with (gzip.open if dataset.endswith(".gz") else open)(dataset, "rb") as handle:
            _, height, width = np.frombuffer(handle.read(16), ">u4", 3, 4)
        return int(height), int(width)
    side = round(features**0.5)
    if side**2 != features:
        raise refuse(f"{dataset}: {features} features are no square picture")
    return side, side


def refuse_too_large(rows: int, columns: int) -> None:
    """Refuse a table that does not fit into memory."""
    if 8 * rows * columns > MAX_BYTES:
        raise refuse(f"a table of {rows} × {columns} numbers is too large: it takes {8e-9 * rows * columns:.3g} GB")


def prepared(dataset: str, target: str | int | None, scale: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return features and targets, each feature divided by its largest absolute value where `scale` is true.

    A feature that is always 0 stays 0.
    """
    features, targets = read(dataset, target)
    if not scale:
        return features, targets
    largest = np.abs(features).max(axis=0)
    return features / np.where(largest > 0, largest, 1.0), targets


def class_codes(dataset: str, targets: np.ndarray, most: int | None = None) -> np.ndarray:
    """Return the class 0, 1, … of each sample, classes in the order of their labels; refuse what is no set of classes.

    `most` is the largest number of classes allowed.
    """
    if targets.dtype.kind == "f" and (targets != np.round(targets)).any():
        odd = targets[targets != np.round(targets)][0]
        raise refuse(f"{dataset}: classes must be words or whole numbers, got {odd}")
    labels, codes = np.unique(targets, return_inverse=True)
    if labels.size < 2:
        raise refuse(f"{dataset}: has one class only ({labels[0]}); at least two are needed")
    if most is not None and labels.size > most:
        raise refuse(f"{dataset}: has {labels.size} classes, but the problem takes {most}")
    return codes


def numeric_targets(dataset: str, targets: np.ndarray) -> np.ndarray:
    """Return the targets of a regression as numbers; refuse words."""
    if targets.dtype.kind not in "biuf":
        raise refuse(f"{dataset}: the targets of a regression must be numbers, got {targets[0]!r}")
    return targets.astype(np.float64)
