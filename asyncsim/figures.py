"""Figures apart from pyplot: making and saving them, and the look that all plots share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from asyncsim.results import aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

#: Colours that stay apart for colour-blind readers, in the order of use: those of Okabe and Ito (2008), three of Tol's.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#332288"
)  # fmt: skip
GREY = "#8C8C8C"

#: What a file of each kind must not say, so that equal pictures are equal files.
_METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def new_figure() -> tuple[Figure, Axes]:
    """Return a figure of 1200 × 800 pixels and its axes, apart from pyplot's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 16 / 3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as png, svg or pdf, as its name ends; the file is there as a whole or not at all."""
    import matplotlib

    path = Path(path)
    kind = path.suffix.lower()
    if kind not in _METADATA:
        raise ValueError(f"{path}: a picture's name must end in {', '.join(_METADATA)}")
    with aside(path) as partial, matplotlib.rc_context({"svg.hashsalt": "asyncsim"}):
        figure.savefig(partial, format=kind[1:], metadata=_METADATA[kind])
    return path


def checked(plot: str, frame: DataFrame, *columns: str) -> DataFrame:
    """Return the frame; refuse one without rows or without a column."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        have = ", ".join(map(str, frame.columns))
        raise ValueError(f"{plot}: the frame has no column '{missing[0]}'; it has: {have}")
    refuse_empty(plot, frame, "it has no rows")
    return frame


def refuse_empty(plot: str, frame: Any, reason: str) -> None:
    """Refuse to draw nothing, and say why there is nothing."""
    if not len(frame):
        raise ValueError(f"{plot}: nothing to draw: {reason}")


def groups_of(frame: DataFrame, name: str = "") -> Iterator[tuple[Any, str, DataFrame]]:
    """Yield (label, colour, its rows) in order of appearance; one group named `name` where there is no label."""
    if "label" not in frame:
        yield name, COLOURS[0], frame
        return
    for place, (label, rows) in enumerate(frame.groupby("label", sort=False, observed=True)):
        yield label, COLOURS[place % len(COLOURS)], rows


def ramp(count: int) -> np.ndarray:
    """Return colours for an ordered quantity, from dark to light but never too light to see; shape (count, 4)."""
    from matplotlib import colormaps

    return np.asarray(colormaps["viridis"](np.linspace(0.0, 0.88, count)))


def whole_numbers(axis: Any) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def worker_axis(ax: Axes, workers: np.ndarray) -> None:
    """Make the x axis logarithmic to base 2, with a tick at each number of workers that has room."""
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log", base=2)
    ticks: list[float] = []
    for value in np.unique(workers):
        if not ticks or value >= 1.15 * ticks[-1]:
            ticks.append(float(value))
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def log_scale(ax: Axes, low: float, high: float) -> None:
    """Make the y axis logarithmic; over less than two decades its labels are plain numbers (0.2, not 2 × 10⁻¹)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    if high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def note(ax: Axes, text: str) -> None:
    """Put a small remark above the right end of the axes."""
    ax.set_title(text, loc="right", fontsize="small", color="#505050")


def finish(
    ax: Axes, x: str, y: str, *, legend: bool = True, grid: Literal["", "x", "both"] = "both", outside: bool = False
) -> Axes:
    """Label the axes and give every plot the same look."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(axis=grid, color="#E6E6E6", linewidth=0.7)
    if legend and outside:
        ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=3)
    elif legend:
        ax.legend(frameon=False)
    return ax
