"""The picture of a data set divided among workers; part of `asyncsim.plots`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from asyncsim.figures import COLOURS, checked, finish, ramp, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

#: More names than this in a legend tell nothing.
MOST_NAMES = 12


def shares(ax: Axes, frame: DataFrame) -> Axes:
    """Draw one bar per worker: how many samples of each class it holds, one class on top of the other.

    `frame` has the columns worker, class and samples, a row for each pair. The legend is in the order of the stack.

    >>> import pandas as pd
    >>> from asyncsim.figures import new_figure
    >>> frame = pd.DataFrame({"worker": [0, 0, 1, 1], "class": [0, 1, 0, 1], "samples": [5, 0, 1, 4]})
    >>> [text.get_text() for text in shares(new_figure()[1], frame).get_legend().get_texts()]
    ['class 1', 'class 0']
    """
    frame = checked("shares", frame, "worker", "class", "samples")
    table = frame.pivot(index="worker", columns="class", values="samples")
    edges = np.append(table.index.to_numpy() - 0.5, table.index.max() + 0.5)
    colours = COLOURS if table.shape[1] <= len(COLOURS) else ramp(table.shape[1])
    bottom = np.zeros(len(table))
    for place, (label, samples) in enumerate(table.items()):
        top = bottom + samples.to_numpy()
        ax.stairs(top, edges, baseline=bottom, fill=True, color=colours[place], label=f"class {label}")
        bottom = top
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(0, None)
    whole_numbers(ax.xaxis)
    finish(ax, "worker", "samples", legend=False, grid="")
    if table.shape[1] <= MOST_NAMES:
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    return ax
