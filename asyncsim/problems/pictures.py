"""Photographs as matrices of grey values, and matrices from files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ValidationInfo

from asyncsim.problems.data import refuse_too_large
from asyncsim.spec import closest, existing_file, refuse

#: The photographs that scikit-learn carries, and their heights and widths.
BUILT_IN = {"china": (427, 640), "flower": (427, 640)}

#: How much of each of red, green and blue makes grey (ITU-R BT.601).
GREY = np.array([0.299, 0.587, 0.114])


def _photograph(value: Any, info: ValidationInfo) -> Any:
    """Accept the name of a built-in photograph, or find a file beside the scenario."""
    if not isinstance(value, str | Path) or value in BUILT_IN:
        return value
    if not Path(value).suffix:
        raise refuse(
            f"unknown photograph '{value}'{closest(str(value), list(BUILT_IN))}; "
            f"allowed: {', '.join(BUILT_IN)}, or a file"
        )
    return existing_file(value, info)


#: "china", "flower", or a file that holds a picture.
Photograph = Annotated[str, BeforeValidator(_photograph)]


@lru_cache(maxsize=4)
def grey_values(photograph: str) -> np.ndarray:
    """Return a photograph as a matrix of grey values from 0 (black) to 1 (white), shape (height, width).

    >>> grey_values("china").shape
    (427, 640)
    """
    if photograph in BUILT_IN:
        from sklearn.datasets import load_sample_image

        return _frozen(load_sample_image(f"{photograph}.jpg") @ GREY / 255.0)
    from PIL import Image

    try:
        with Image.open(photograph) as picture:
            refuse_too_large(picture.height, picture.width)
            deep = picture.mode.startswith("I") or picture.mode == "F"
            entries = np.asarray(picture if deep else picture.convert("RGB"), dtype=np.float64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise refuse(f"{photograph}: is no picture that can be read: {error}") from error
    # Pictures of one channel have 16 bits in each entry, or numbers of any size.
    grey = entries @ GREY / 255.0 if entries.ndim == 3 else entries / max(65535.0, float(np.abs(entries).max()))
    if not np.isfinite(grey).all() or (grey < 0).any():
        raise refuse(f"{photograph}: has grey values that are negative or not finite")
    if not grey.any():
        raise refuse(f"{photograph}: is all black")
    return _frozen(grey)


def read_matrix(file: str) -> np.ndarray:
    """Return the matrix in an .npy file, or in a .csv file without header; refuse what is none."""
    suffix = Path(file).suffix.lower()
    if suffix not in (".npy", ".csv"):
        raise refuse(f"a matrix is read from a file that ends in .npy or .csv, got {file}")
    try:
        matrix = np.load(file, allow_pickle=False) if suffix == ".npy" else np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise refuse(f"{file}: not a matrix of numbers: {error}") from error
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "biuf" or not matrix.size:
        raise refuse(f"{file}: not a matrix of numbers: shape {np.shape(matrix)}")
    bad = np.argwhere(~np.isfinite(matrix))
    if bad.size:
        row, column = bad[0]
        raise refuse(f"{file}: column {column} of row {row} (both counted from 0) is {matrix[row, column]}")
    return _frozen(matrix.astype(np.float64))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
