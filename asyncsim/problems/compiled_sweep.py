"""Compiled coordinate descent on the rows of a factor. Imports numba: import it inside functions."""

from __future__ import annotations

from asyncsim.compiling import njit

#: Rows that go together, entry by entry, while bends[a] is at hand: no row feels another.
TOGETHER = 8


@njit("void(float64[:, :, ::1], float64[:, :, ::1], float64[:, :, ::1], int64, int64, float64)")
def move_rows(rows, slopes, bends, start, stop, step):  # type: ignore[no-untyped-def]
    """Move the entries start … stop − 1 of `rows`, counted row by row, one after another and in place.

    Entry a of row i moves by −step times its slope; that changes the slopes of the entries b after it in its row by the
    move times bends[a, b]. `slopes`, of the shape of `rows`, are used up. The first axis is that of replicas.
    """
    count, width = rows.shape[1:]
    for replica in range(rows.shape[0]):
        for low in range(0, count, TOGETHER):
            for a in range(width):
                for i in range(low, min(low + TOGETHER, count)):
                    if start <= i * width + a < stop:
                        move = -step * slopes[replica, i, a]
                        rows[replica, i, a] += move
                        for b in range(a + 1, width):
                            slopes[replica, i, b] += move * bends[replica, a, b]
