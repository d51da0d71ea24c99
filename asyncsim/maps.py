"""Maps: what was best at each point of two numbers that were swept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from asyncsim.figures import COLOURS, checked, finish, refuse_empty

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


def winners(ax: Axes, frame: DataFrame, *, x: str, y: str, value: str) -> Axes:
    """Draw one tile for each pair of two swept numbers, in the colour of what was best there.

    `frame` has the columns x, y, label (what was best; missing where nothing arrived) and value (how good it was, which
    stands in the tile), a row for each pair. The arguments `x`, `y` and `value` say what these are. Tiles are equally
    large, whatever the steps between the numbers.

    >>> import pandas as pd
    >>> from asyncsim.figures import new_figure
    >>> figure, ax = new_figure()
    >>> frame = pd.DataFrame({"x": [1, 2], "y": [1, 1], "label": ["plain", "top_k"], "value": [3.0, 2.0]})
    >>> [text.get_text() for text in winners(ax, frame, x="workers", y="bandwidth", value="time").texts]
    ['3', '2']
    """
    frame = checked("winners", frame, "x", "y", "label", "value")
    refuse_empty("winners", frame["label"].dropna(), "nothing arrived anywhere")
    columns, rows = np.unique(frame["x"].to_numpy()), np.unique(frame["y"].to_numpy())
    names = list(dict.fromkeys(frame["label"].dropna()))
    tiles = np.ones((rows.size, columns.size, 4))
    across, above = np.searchsorted(columns, frame["x"]).tolist(), np.searchsorted(rows, frame["y"]).tolist()
    for i, j, label, number in zip(across, above, frame["label"], frame["value"], strict=True):
        won = label in names
        if won:
            tiles[j, i] = _colour(names.index(label))
        ax.text(i, j, f"{number:.3g}" if won else "none", ha="center", va="center", fontsize="small")
    ax.imshow(tiles, origin="lower", aspect="auto")
    for name in names:
        ax.plot([], [], "s", markersize=9, color=_colour(names.index(name)), label=name)
    ax.set_xticks(range(columns.size), [f"{number:g}" for number in columns])
    ax.set_yticks(range(rows.size), [f"{number:g}" for number in rows])
    finish(ax, x, y, legend=False, grid="")
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=3)
    ax.set_title(f"in each tile: {value}", loc="left", fontsize="small", color="#505050")
    return ax


def _colour(place: int) -> tuple[float, float, float, float]:
    """Return the colour of a name, light enough to be written on."""
    from matplotlib.colors import to_rgba

    red, green, blue, _ = to_rgba(COLOURS[place % len(COLOURS)])
    return 0.45 + 0.55 * red, 0.45 + 0.55 * green, 0.45 + 0.55 * blue, 1.0
