"""Compiled coordinate descent on the rows of a factor. Imports numba: import it inside functions."""

from __future__ import annotations

from asyncsim.compiling import njit


@njit("void(float64[:, ::1], float64[:, ::1], float64[:, ::1], int64, int64, float64)")
def move_rows(rows, slopes, bends, start, stop, step):  # type: ignore[no-untyped-def]
    """Move the entries start … stop − 1 of `rows`, counted row by row, one after another and in place.

    Entry a of row i moves by −step times its slope; that changes the slopes of the entries b after it in its row by the
    move times bends[a, b]. `slopes`, of the shape of `rows`, are used up.
    """
    width = rows.shape[1]
    for entry in range(start, stop):
        i, a = entry // width, entry % width
        move = -step * slopes[i, a]
        rows[i, a] += move
        for b in range(a + 1, width):
            slopes[i, b] += move * bends[a, b]
