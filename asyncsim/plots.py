"""Plots: each function draws one tidy frame on one `ax` and returns the `ax`.

Nothing global is touched: no pyplot, no current figure, no style. `new_figure` and `save` make pictures without a
screen, and the same numbers make the same bytes.

>>> import pandas as pd
>>> figure, ax = new_figure()
>>> ax = staleness_histogram(ax, pd.DataFrame({"staleness": [0, 1, 1, 2]}), theory=np.array([0.3, 0.4, 0.3]))
>>> ax.get_xlabel()
'staleness (updates)'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from asyncsim.results import aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

#: Colours that stay apart for colour-blind readers (Okabe and Ito 2008), in the order of use.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
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


# --- staleness ----------------------------------------------------------------------------------------------------


def staleness_histogram(
    ax: Axes, frame: DataFrame, *, theory: Mapping[str, np.ndarray] | np.ndarray | None = None
) -> Axes:
    """Draw the share of gradients of each staleness, up to the 99.9 % quantile.

    `frame` has the column `staleness`, one row per gradient (missing where it was not applied), and, to compare several
    distributions, `label`. `theory` holds the probabilities of staleness 0, 1, 2, …: one array, or one per label.
    """
    frame = _checked("staleness_histogram", frame, "staleness").dropna(subset=["staleness"])
    _refuse_empty("staleness_histogram", frame, "no gradient was applied")
    groups = list(_groups(frame))
    expected = {groups[0][0]: theory} if isinstance(theory, np.ndarray | list | tuple) else dict(theory or {})
    unknown = set(expected) - {name for name, _, _ in groups}
    if unknown:
        raise ValueError(f"staleness_histogram: theory for {sorted(map(str, unknown))}, of which the frame has no rows")

    last = 5  # at least so much is shown
    for name, colour, rows in groups:
        values = rows["staleness"].to_numpy(dtype=np.int64)
        last = max(last, int(np.quantile(values, 0.999, method="inverted_cdf")))
        share = np.bincount(values) / values.size
        edges = np.arange(share.size + 1) - 0.5
        single = len(groups) == 1
        ax.stairs(
            share, edges, fill=True, color=colour, alpha=0.45 if single else 0.2, label="measured" if single else name
        )
        if not single:
            ax.stairs(share, edges, color=colour, linewidth=1.2)
    shown = np.arange(last + 1)
    for name, colour, _ in groups:
        if name in expected:
            pmf = np.asarray(expected[name], dtype=np.float64)[: last + 1]
            few = last <= 60
            ax.plot(
                shown[: pmf.size],
                pmf,
                color=COLOURS[-1] if len(groups) == 1 else colour,
                linewidth=1.0 if few else 1.6,
                linestyle="-" if len(groups) == 1 else "--",
                marker="o" if few else "",
                markersize=3.5,
                label="theory" if len(groups) == 1 else None,
            )
    if expected and len(groups) > 1:
        ax.plot([], [], color=GREY, linestyle="--", marker="o" if last <= 60 else "", markersize=3.5, label="theory")
    ax.set_xlim(-0.5 - 0.01 * last, last + 0.5 + 0.01 * last)
    ax.set_ylim(bottom=0)
    _whole_numbers(ax.xaxis)
    return _finish(ax, "staleness (updates)", "share of gradients", legend=len(groups) > 1 or bool(expected))


# --- progress -----------------------------------------------------------------------------------------------------


def loss(
    ax: Axes,
    frame: DataFrame,
    *,
    metric: str = "loss",
    against: Literal["update", "time"] = "update",
    label: str | None = None,
    time_unit: str = "s",
) -> Axes:
    """Draw a metric against updates or time: the median over replicas and the band from their 10 % to 90 % quantile.

    `frame` has the columns replica, update, time, metric, value and, to compare several runs, `label`; the argument
    `label` names a frame that has none. A replica keeps its last value until the next one, and after its end. The value
    axis is logarithmic where all values are positive and span more than a factor of ten.
    """
    if against not in ("update", "time"):
        raise ValueError(f"loss: against must be 'update' or 'time', got {against!r}")
    frame = _checked("loss", frame, "replica", against, "metric", "value")
    have = sorted(map(str, frame["metric"].unique()))
    frame = frame[frame["metric"] == metric].dropna(subset=[against])
    _refuse_empty("loss", frame, f"no '{metric}' with a known {against}; its metrics: {', '.join(have)}")

    groups = list(_groups(frame, label or ""))
    low, high, replicas = np.inf, -np.inf, 0
    for name, colour, rows in groups:
        curves = [curve.sort_values(against) for _, curve in rows.groupby("replica")]
        points = [curve[against].to_numpy(dtype=np.float64) for curve in curves]
        grid = _grid(points)
        table = np.stack(
            [
                _steps(at, curve["value"].to_numpy(dtype=np.float64), grid)
                for at, curve in zip(points, curves, strict=True)
            ]
        )
        bottom, middle, top = (_quantile(table, share) for share in (0.1, 0.5, 0.9))
        ax.plot(grid, middle, color=colour, label=name or None)
        if len(curves) > 1:
            ax.fill_between(grid, bottom, top, color=colour, alpha=0.2, linewidth=0)
        finite = np.concatenate([bottom, middle, top])
        finite = finite[np.isfinite(finite)]
        if finite.size:
            low, high = min(low, finite.min()), max(high, finite.max())
        replicas = max(replicas, len(curves))
    if low > 0 and high > 10 * low:
        ax.set_yscale("log")
    if replicas > 1:
        _note(ax, f"median and 10–90 % band of {replicas} replicas")
    ax.margins(x=0.01)
    where = "updates" if against == "update" else f"time ({time_unit})"
    return _finish(ax, where, metric.replace("_", " "), legend=len(groups) > 1 or label is not None)


def _grid(points: list[np.ndarray]) -> np.ndarray:
    """Return the points at which replicas are compared: their own where they share them, else 400 evenly spaced."""
    own = np.unique(np.concatenate(points))
    return own if own.size <= 400 else np.linspace(own[0], own[-1], 400)


def _quantile(table: np.ndarray, share: float) -> np.ndarray:
    """Return the quantile over the first axis; as np.quantile, but infinite values (runs that diverged) are allowed."""
    ordered = np.sort(table, axis=0)
    place = share * (len(table) - 1)
    below, above = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
    with np.errstate(invalid="ignore"):
        between = np.where(above == below, below, below + (place % 1) * (above - below))
    return np.where(np.isnan(table).any(axis=0), np.nan, between)


def _steps(at: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return a curve that jumps at `at` on the grid: NaN before its first value, ∞ where a value is no number."""
    place = np.searchsorted(at, grid, side="right") - 1
    values = np.where(np.isnan(values), np.inf, values)
    return np.where(place >= 0, values[np.maximum(place, 0)], np.nan)


def time_to_target(ax: Axes, frame: DataFrame, *, time_unit: str = "s") -> Axes:
    """Draw the mean time to a target as bars, the replicas as dots, and say how many did not reach it.

    `frame` has the columns label, replica and time (NaN where the target was not reached) and may have `theory`, the
    time that a formula predicts for the label. The mean is that of the replicas that reached the target.
    """
    frame = _checked("time_to_target", frame, "label", "replica", "time")
    labels, widest = [], 0.0
    for place, (name, colour, rows) in enumerate(_groups(frame)):
        labels.append(str(name))
        time = rows["time"].to_numpy(dtype=np.float64)
        reached = time[~np.isnan(time)]
        if reached.size:
            ax.barh(place, reached.mean(), height=0.62, color=colour, alpha=0.55)
            spread = np.linspace(-0.2, 0.2, reached.size) if reached.size > 1 else np.zeros(1)
            ax.plot(reached, place + spread, "o", color="black", markersize=3, alpha=0.6, markeredgewidth=0)
        predicted = rows["theory"].to_numpy(dtype=np.float64)[0] if "theory" in rows else np.nan
        if not np.isnan(predicted):
            ax.plot([predicted] * 2, [place - 0.38, place + 0.38], color="black", linewidth=2.5, solid_capstyle="butt")
        end = np.nanmax([predicted, 0.0, *reached])
        widest = max(widest, float(end))
        if reached.size < time.size:
            missed = f"{time.size - reached.size} of {time.size} did not reach it"
            ax.annotate(missed, (end, place), xytext=(8, 0), textcoords="offset points", va="center", color="#B22222")
    if "theory" in frame and frame["theory"].notna().any():
        ax.plot([], [], color="black", linewidth=2.5, label="theory")
    ax.plot([], [], "s", color=GREY, alpha=0.7, label="mean")
    ax.plot([], [], "o", color="black", alpha=0.6, markersize=3, label="replica")
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    missing = frame["time"].isna().groupby(frame["label"]).any().any()
    ax.set_xlim(0, (widest or 1.0) * (1.3 if missing else 1.05))
    return _finish(ax, f"time to target ({time_unit})", "", grid="x", outside=True)


# --- the schedule -------------------------------------------------------------------------------------------------


def timeline(ax: Axes, frame: DataFrame, *, updates: int = 60, time_unit: str = "s") -> Axes:
    """Draw what the workers of the first replica do until its first `updates` updates are applied.

    `frame` is a trace's `to_frame()`, with times. A bar is a gradient being computed, coloured by the staleness that it
    was applied with, grey where it was not applied; the thin line around it is the rest of its way, from the read to
    the decision of the server. The ticks in the lowest row are the updates. A gradient under way at the end of the
    trace has no row, hence no bar: a dotted line takes its place.
    """
    from matplotlib.colors import ListedColormap

    names = ("replica", "worker", "update", "status", "staleness", "start_time", "done_time", "apply_time")
    frame = _checked("timeline", frame, *names)
    frame = frame[frame["replica"] == frame["replica"].min()]
    workers = int(frame["worker"].max()) + 1
    instants = frame.loc[(frame["status"] == "applied") & (frame["update"] < updates), "apply_time"].dropna().unique()
    _refuse_empty("timeline", instants, "no update has a known time")
    end = float(instants.max())

    frame = frame[frame["start_time"] < end].assign(
        done_time=lambda rows: rows["done_time"].fillna(rows["apply_time"]).clip(upper=end),
        settled=lambda rows: rows["apply_time"].clip(upper=end),
        read=lambda rows: rows["read_time"] if "read_time" in rows else rows["start_time"],
    )
    ax.hlines(frame["worker"], frame["read"], frame["settled"], color=GREY, linewidth=0.8, zorder=1)
    known = frame.groupby("worker")["settled"].max().reindex(range(workers), fill_value=0.0)
    pending = known[known < end]
    ax.hlines(pending.index, pending, end, color=GREY, linewidth=1.2, linestyle=":", zorder=1)

    frame = frame.dropna(subset=["done_time"])
    used = frame[frame["status"] == "applied"]
    staleness = used["staleness"].to_numpy(dtype=np.float64)
    line = 0.5 if workers <= 50 else 0.1
    bars = _bars(ax, used, array=staleness, cmap=ListedColormap(_ramp(256)), edgecolor="white", linewidth=line)
    bars.set_clim(0, max(1.0, staleness.max(initial=0.0)))
    scale = ax.figure.colorbar(bars, ax=ax, pad=0.01, aspect=30, label="staleness (updates)")
    scale.outline.set_visible(False)
    _whole_numbers(scale.ax.yaxis)
    unused = frame[frame["status"] != "applied"]
    if len(unused):
        look: dict[str, Any] = {"facecolor": "#E3E3E3", "edgecolor": GREY, "hatch": "//////", "linewidth": line}
        _bars(ax, unused, **look)
        ax.fill_between([], [], label="not applied", **look)

    strip = max(0.3, 0.02 * workers)  # the row of the updates stays visible below many workers
    below = workers - 0.5 + 1.7 * strip
    ax.vlines(instants, below - strip, below + strip, color="black", linewidth=0.9)
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, workers) if workers <= 20 * step)
    rows = [row for row in range(0, workers, every) if row <= below - 0.05 * workers]  # labels need room
    ax.set_yticks([*rows, below], [*map(str, rows), "updates"])
    ax.set_ylim(below + 1.7 * strip, -0.6)
    ax.set_xlim(min(0.0, float(frame["read"].min())), end)
    return _finish(ax, f"time ({time_unit})", "worker", legend=len(unused) > 0, grid="", outside=True)


def _bars(ax: Axes, rows: DataFrame, **look: Any) -> Any:
    """Draw a bar from start to done in the row of each gradient's worker; return them all."""
    from matplotlib.collections import PolyCollection

    start, done = rows["start_time"].to_numpy(dtype=np.float64), rows["done_time"].to_numpy(dtype=np.float64)
    place = rows["worker"].to_numpy(dtype=np.float64)
    top, bottom = place - 0.36, place + 0.36
    corners = np.array([[start, top], [done, top], [done, bottom], [start, bottom]])
    return ax.add_collection(PolyCollection(list(corners.transpose(2, 0, 1)), zorder=2, **look), autolim=False)


# --- sweeps -------------------------------------------------------------------------------------------------------


def momentum_sweep(ax: Axes, frame: DataFrame, *, explicit: float = 0.0) -> Axes:
    """Draw the measured momentum with its interval against the number of workers M, over the curve 1 − 1/M.

    `frame` has the columns workers, momentum, low, high and, to compare several clusters, `label`. `explicit` is the
    momentum that the server applies itself: it shifts the curve.
    """
    frame = _checked("momentum_sweep", frame, "workers", "momentum", "low", "high")
    workers = frame["workers"].to_numpy(dtype=np.float64)
    dense = np.geomspace(workers.min(), workers.max(), 200)
    name = r"$1 - 1/M$" if not explicit else rf"$1 - 1/M {explicit:+g}$"
    ax.plot(dense, 1 - 1 / dense + explicit, color=GREY, label=f"{name} (exponential service)", zorder=1)
    for label, colour, rows in _groups(frame, "measured"):
        rows = rows.sort_values("workers")
        middle = rows["momentum"].to_numpy(dtype=np.float64)
        ends = np.abs(rows[["low", "high"]].to_numpy(dtype=np.float64) - middle[:, None]).T
        ax.errorbar(rows["workers"], middle, yerr=ends, fmt="o", color=colour, capsize=4, markersize=5, label=label)
    _worker_axis(ax, workers)
    return _finish(ax, "workers $M$", "momentum")


def optimum_sweep(ax: Axes, frame: DataFrame) -> Axes:
    """Draw the best explicit momentum against the number of workers, one colour per label, one line per criterion.

    `frame` has the columns workers, momentum, criterion (such as "mean", "mean square") and label (such as "κ = 5"),
    and may have low and high, an interval.
    """
    frame = _checked("optimum_sweep", frame, "workers", "momentum", "criterion", "label")
    styles = dict(zip(frame["criterion"].unique(), ("-", "--", ":", "-."), strict=False))
    for label, colour, rows in _groups(frame):
        for criterion, part in rows.groupby("criterion", sort=False):
            part = part.sort_values("workers")
            x, middle = part["workers"].to_numpy(), part["momentum"].to_numpy(dtype=np.float64)
            style = styles.get(criterion, "-")
            ax.plot(x, middle, style, color=colour, marker="o", markersize=4.5, label=f"{label}, {criterion}")
            if "low" in part and "high" in part:
                ends = np.abs(part[["low", "high"]].to_numpy(dtype=np.float64) - middle[:, None]).T
                ax.errorbar(x, middle, yerr=ends, fmt="none", ecolor=colour, capsize=3)
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    _worker_axis(ax, frame["workers"].to_numpy(dtype=np.float64))
    return _finish(ax, "workers $M$", "best explicit momentum")


def regret(ax: Axes, frame: DataFrame, *, slope: float = 0.5) -> Axes:
    """Draw regret against the number of updates on logarithmic axes, one line per delay, with a line of given slope.

    `frame` has the columns updates, delay and regret, and may have `replica`: the line is then the mean. Points at
    which that is not positive are left out.
    """
    frame = _checked("regret", frame, "updates", "delay", "regret")
    table = frame.groupby(["delay", "updates"])["regret"].mean()
    table = table[table > 0]
    _refuse_empty("regret", table, "no positive regret, so nothing to draw on logarithmic axes")
    delays = table.index.get_level_values("delay").unique()
    for delay, colour in zip(delays, _ramp(len(delays)), strict=True):
        line = table.loc[delay]
        ax.plot(line.index, line.to_numpy(), color=colour, marker="o", markersize=4, label=f"{delay:g}")
    x = table.index.get_level_values("updates").to_numpy(dtype=np.float64)
    ends = np.array([x.min(), x.max()])
    # Through the lowest line's first point, shifted down so that it covers none.
    under = 0.7 * float(np.min(table.to_numpy() * (ends[0] / x) ** slope))
    ax.plot(ends, under * (ends / ends[0]) ** slope, "--", color=GREY, label=f"slope {slope:g}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    _finish(ax, "updates", "regret", legend=False)
    ax.legend(title="delay (updates)", frameon=False)
    return ax


# --- what all share -----------------------------------------------------------------------------------------------


def _checked(plot: str, frame: DataFrame, *columns: str) -> DataFrame:
    """Return the frame; refuse one without rows or without a column."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        have = ", ".join(map(str, frame.columns))
        raise ValueError(f"{plot}: the frame has no column '{missing[0]}'; it has: {have}")
    _refuse_empty(plot, frame, "it has no rows")
    return frame


def _refuse_empty(plot: str, frame: Any, reason: str) -> None:
    if not len(frame):
        raise ValueError(f"{plot}: nothing to draw: {reason}")


def _groups(frame: DataFrame, name: str = "") -> Iterator[tuple[Any, str, DataFrame]]:
    """Yield (label, colour, its rows) in order of appearance; one group named `name` where there is no label."""
    if "label" not in frame:
        yield name, COLOURS[0], frame
        return
    for place, (label, rows) in enumerate(frame.groupby("label", sort=False, observed=True)):
        yield label, COLOURS[place % len(COLOURS)], rows


def _ramp(count: int) -> np.ndarray:
    """Return colours for an ordered quantity, from dark to light but never too light to see; shape (count, 4)."""
    from matplotlib import colormaps

    return np.asarray(colormaps["viridis"](np.linspace(0.0, 0.88, count)))


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _worker_axis(ax: Axes, workers: np.ndarray) -> None:
    """Make the x axis logarithmic to base 2, with a tick at each number of workers that has room."""
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log", base=2)
    ticks: list[float] = []
    for value in np.unique(workers):
        if not ticks or value >= 1.15 * ticks[-1]:
            ticks.append(float(value))
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def _note(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="right", fontsize="small", color="#505050")


def _finish(
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
