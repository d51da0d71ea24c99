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

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from asyncsim.figures import (
    COLOURS,
    GREY,
    checked,
    finish,
    groups_of,
    log_scale,
    new_figure,
    note,
    ramp,
    refuse_empty,
    save,
    whole_numbers,
    worker_axis,
)
from asyncsim.maps import winners
from asyncsim.saddle_plots import energy, landscape, scaling
from asyncsim.share_plots import shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

__all__ = [
    "energy",
    "landscape",
    "loss",
    "momentum_sweep",
    "new_figure",
    "optimum_sweep",
    "paired_differences",
    "regret",
    "save",
    "scaling",
    "shares",
    "staleness_histogram",
    "staleness_tails",
    "time_to_target",
    "timeline",
    "winners",
]


# --- staleness ----------------------------------------------------------------------------------------------------


def staleness_histogram(
    ax: Axes, frame: DataFrame, *, theory: Mapping[str, np.ndarray] | np.ndarray | None = None
) -> Axes:
    """Draw the share of gradients of each staleness, up to the 99.9 % quantile.

    `frame` has the column `staleness`, one row per gradient (missing where it was not applied), or one per value with
    their `count`, and, to compare several distributions, `label`. `theory` holds the probabilities of staleness 0, 1,
    2, …: one array, or one per label.
    """
    frame = checked("staleness_histogram", frame, "staleness").dropna(subset=["staleness"])
    refuse_empty("staleness_histogram", frame, "no gradient was applied")
    groups = list(groups_of(frame))
    expected = {groups[0][0]: theory} if isinstance(theory, np.ndarray | list | tuple) else dict(theory or {})
    unknown = set(expected) - {name for name, _, _ in groups}
    if unknown:
        raise ValueError(f"staleness_histogram: theory for {sorted(map(str, unknown))}, of which the frame has no rows")

    last = 5  # at least so much is shown
    for name, colour, rows in groups:
        values = rows["staleness"].to_numpy(dtype=np.int64)
        counts = np.bincount(values, weights=rows["count"].to_numpy(dtype=np.float64) if "count" in rows else None)
        share = counts / counts.sum()
        last = max(last, int(np.argmax(counts.cumsum() >= 0.999 * counts.sum())))
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
                color="black" if len(groups) == 1 else colour,
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
    whole_numbers(ax.xaxis)
    return finish(ax, "staleness (updates)", "share of gradients", legend=len(groups) > 1 or bool(expected))


def staleness_tails(ax: Axes, frame: DataFrame) -> Axes:
    """Draw the share of gradients at least so stale, on a logarithmic axis: a straight line is a geometric law.

    `frame` has the columns staleness and count (gradients of that staleness) and, to compare several, `label`.
    """
    frame = checked("staleness_tails", frame, "staleness", "count")
    largest, rarest = 1, 1.0
    for name, colour, rows in groups_of(frame):
        rows = rows[rows["count"] > 0].sort_values("staleness")
        values, counts = rows["staleness"].to_numpy(dtype=np.float64), rows["count"].to_numpy(dtype=np.float64)
        refuse_empty("staleness_tails", values, "no gradient was applied")
        share = counts[::-1].cumsum()[::-1] / counts.sum()
        ax.stairs(share, np.concatenate([[0.0], values + 0.5]), baseline=None, color=colour, label=name or None)
        largest, rarest = max(largest, int(values[-1])), min(rarest, float(share[-1]))
    ax.set_yscale("log")
    ax.set_ylim(0.7 * rarest, 1.3)
    ax.set_xlim(-0.01 * largest, 1.01 * largest + 1)
    whole_numbers(ax.xaxis)
    return finish(ax, "staleness (updates)", "share at least so stale", legend="label" in frame)


# --- progress -----------------------------------------------------------------------------------------------------


def loss(
    ax: Axes,
    frame: DataFrame,
    *,
    metric: str = "loss",
    against: Literal["update", "time", "bytes"] = "update",
    label: str | None = None,
    time_unit: str = "s",
) -> Axes:
    """Draw a metric against updates, time or bytes: the median over replicas and their 10 % to 90 % quantiles' band.

    `frame` has the columns replica, update, time, metric, value and, to compare several runs, `label`; the argument
    `label` names a frame that has none. Bytes are those of the metric "bytes" at the same versions. Between two
    measurements a replica is on the straight line that joins them, and after its end it keeps its last value. The value
    axis is logarithmic where all values are positive and span more than a factor of ten, that of times where one curve
    ends ten times as late as another, and that of bytes always.
    """
    if against not in ("update", "time", "bytes"):
        raise ValueError(f"loss: against must be 'update', 'time' or 'bytes', got {against!r}")
    frame = checked("loss", frame, "replica", "update" if against == "bytes" else against, "metric", "value")
    have = sorted(map(str, frame["metric"].unique()))
    if against == "bytes":
        frame = _with_bytes(frame)
    frame = frame[frame["metric"] == metric].dropna(subset=[against])
    refuse_empty("loss", frame, f"no '{metric}' with a known {against}; its metrics: {', '.join(have)}")

    groups = list(groups_of(frame, label or ""))
    ends = [float(rows[against].max()) for _, _, rows in groups]
    wide = against == "bytes" or (against == "time" and max(ends) > 10 * min(ends) > 0)
    low, high, replicas = np.inf, -np.inf, 0
    for name, colour, rows in groups:
        curves = [curve.sort_values(against) for _, curve in rows.groupby("replica")]
        points = [curve[against].to_numpy(dtype=np.float64) for curve in curves]
        grid = _grid(points, wide=wide)
        table = np.stack(
            [
                _joined(at, curve["value"].to_numpy(dtype=np.float64), grid)
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
        log_scale(ax, low, high)
    if replicas > 1:
        note(ax, f"median and 10–90 % band of {replicas} replicas")
    ax.margins(x=0.01)
    if wide:
        ax.set_xscale("log")
    where = {"update": "updates", "time": f"time ({time_unit})", "bytes": "bytes sent by a worker"}[against]
    return finish(ax, where, metric.replace("_", " "), legend=len(groups) > 1 or label is not None)


def _with_bytes(frame: DataFrame) -> DataFrame:
    """Return the frame with a column of the bytes sent by each version; without those that no bytes lead to."""
    keys = [name for name in ("label", "replica", "update", "time") if name in frame]
    sent = frame.loc[frame["metric"] == "bytes", [*keys, "value"]].rename(columns={"value": "bytes"})
    refuse_empty("loss", sent, "no 'bytes' were measured")
    frame = frame.merge(sent.drop_duplicates(keys), on=keys)
    return frame[frame["bytes"] > 0]


def _grid(points: list[np.ndarray], *, wide: bool) -> np.ndarray:
    """Return the points at which replicas are compared: their own where they share them, else 400 evenly spaced.

    On a `wide` axis, which is logarithmic, they are positive and evenly spaced there.
    """
    own = np.unique(np.concatenate(points))
    own = own[own > 0] if wide else own
    return own if own.size <= 400 else (np.geomspace if wide else np.linspace)(own[0], own[-1], 400)


def _quantile(table: np.ndarray, share: float) -> np.ndarray:
    """Return the quantile over the first axis; as np.quantile, but infinite values (runs that diverged) are allowed."""
    ordered = np.sort(table, axis=0)
    place = share * (len(table) - 1)
    below, above = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
    with np.errstate(invalid="ignore"):
        between = np.where(above == below, below, below + (place % 1) * (above - below))
    return np.where(np.isnan(table).any(axis=0), np.nan, between)


def _joined(at: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return a curve of straight lines on the grid: NaN before its first value, ∞ on the way to or from no number.

    Were it to jump, replicas measured a little apart in time would seem far apart in value.
    """
    place = np.searchsorted(at, grid, side="right") - 1
    here = np.maximum(place, 0)
    then = np.minimum(here + 1, len(at) - 1)
    values = np.where(np.isnan(values), np.inf, values)
    start, end = values[here], values[then]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where((grid > at[here]) & (at[then] > at[here]), (grid - at[here]) / (at[then] - at[here]), 0.0)
        between = np.where((share == 0.0) | (start == end), start, start + share * (end - start))
    return np.where(place >= 0, np.where(np.isnan(between), np.inf, between), np.nan)


def time_to_target(ax: Axes, frame: DataFrame, *, time_unit: str = "s") -> Axes:
    """Draw the mean time to a target as bars, the replicas as dots, and say how many did not reach it.

    `frame` has the columns label, replica and time (NaN where the target was not reached) and may have `theory`, the
    time that a formula predicts for the label. The mean is that of the replicas that reached the target.
    """
    frame = checked("time_to_target", frame, "label", "replica", "time")
    labels, widest = [], 0.0
    for place, (name, colour, rows) in enumerate(groups_of(frame)):
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
    return finish(ax, f"time to target ({time_unit})", "", grid="x", outside=True)


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
    frame = checked("timeline", frame, *names)
    frame = frame[frame["replica"] == frame["replica"].min()]
    workers = int(frame["worker"].max()) + 1
    instants = frame.loc[(frame["status"] == "applied") & (frame["update"] < updates), "apply_time"].dropna().unique()
    refuse_empty("timeline", instants, "no update has a known time")
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
    bars = _bars(ax, used, array=staleness, cmap=ListedColormap(ramp(256)), edgecolor="white", linewidth=line)
    bars.set_clim(0, max(1.0, staleness.max(initial=0.0)))
    scale = ax.figure.colorbar(bars, ax=ax, pad=0.01, aspect=30, label="staleness (updates)")
    scale.outline.set_visible(False)
    whole_numbers(scale.ax.yaxis)
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
    return finish(ax, f"time ({time_unit})", "worker", legend=len(unused) > 0, grid="", outside=True)


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
    frame = checked("momentum_sweep", frame, "workers", "momentum", "low", "high")
    workers = frame["workers"].to_numpy(dtype=np.float64)
    dense = np.geomspace(workers.min(), workers.max(), 200)
    name = r"$1 - 1/M$" if not explicit else rf"$1 - 1/M {explicit:+g}$"
    ax.plot(dense, 1 - 1 / dense + explicit, color=GREY, label=f"{name} (exponential service)", zorder=1)
    for label, colour, rows in groups_of(frame, "measured"):
        rows = rows.sort_values("workers")
        middle = rows["momentum"].to_numpy(dtype=np.float64)
        ends = np.abs(rows[["low", "high"]].to_numpy(dtype=np.float64) - middle[:, None]).T
        ax.errorbar(rows["workers"], middle, yerr=ends, fmt="o", color=colour, capsize=4, markersize=5, label=label)
    worker_axis(ax, workers)
    return finish(ax, "workers $M$", "momentum")


def optimum_sweep(ax: Axes, frame: DataFrame) -> Axes:
    """Draw the best explicit momentum against the number of workers, one colour per label, one line per criterion.

    `frame` has the columns workers, momentum, criterion (such as "mean", "mean square") and label (such as "κ = 5"),
    and may have low and high, an interval. The criterion "measured" is drawn as points.
    """
    frame = checked("optimum_sweep", frame, "workers", "momentum", "criterion", "label")
    lines = [criterion for criterion in frame["criterion"].unique() if criterion != "measured"]
    styles = dict(zip(lines, ("-", "--", ":", "-."), strict=False))
    for label, colour, rows in groups_of(frame):
        for criterion, part in rows.groupby("criterion", sort=False):
            part = part.sort_values("workers")
            x, middle = part["workers"].to_numpy(), part["momentum"].to_numpy(dtype=np.float64)
            measured = criterion == "measured"
            style, marker = ("none", "o") if measured else (styles.get(criterion, "-"), "")
            name = f"{label}, {criterion}".strip(", ")
            ax.plot(x, middle, linestyle=style, color=colour, marker=marker, markersize=6, label=name)
            if "low" in part and "high" in part:
                ends = np.abs(part[["low", "high"]].to_numpy(dtype=np.float64) - middle[:, None]).T
                ax.errorbar(x, middle, yerr=ends, fmt="none", ecolor=colour, capsize=3)
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    worker_axis(ax, frame["workers"].to_numpy(dtype=np.float64))
    return finish(ax, "workers $M$", "best explicit momentum")


def regret(ax: Axes, frame: DataFrame, *, slope: float | None = 0.5) -> Axes:
    """Draw regret against the number of updates, one line per delay.

    `frame` has the columns updates, delay and regret, and may have `replica`: the line is then the mean. The axes are
    logarithmic, with a line of the given slope, and points that are not positive are left out; with ``slope=None`` only
    the updates are, so that logarithmic growth is a straight line.
    """
    frame = checked("regret", frame, "updates", "delay", "regret")
    table = frame.groupby(["delay", "updates"])["regret"].mean()
    if slope is not None:
        table = table[table > 0]
        refuse_empty("regret", table, "no positive regret, so nothing to draw on logarithmic axes")
    delays = table.index.get_level_values("delay").unique()
    for delay, colour in zip(delays, ramp(len(delays)), strict=True):
        line = table.loc[delay]
        ax.plot(line.index, line.to_numpy(), color=colour, marker="o", markersize=4, label=f"{delay:g}")
    ax.set_xscale("log")
    if slope is not None:
        x = table.index.get_level_values("updates").to_numpy(dtype=np.float64)
        ends = np.array([x.min(), x.max()])
        # Through the lowest line's first point, shifted down so that it covers none.
        under = 0.7 * float(np.min(table.to_numpy() * (ends[0] / x) ** slope))
        ax.plot(ends, under * (ends / ends[0]) ** slope, "--", color=GREY, label=f"slope {slope:g}")
        ax.set_yscale("log")
    finish(ax, "updates", "regret", legend=False)
    ax.legend(title="delay (updates)", frameon=False)  # where it covers least: the highest line may lie anywhere
    return ax


def paired_differences(ax: Axes, frame: DataFrame, *, name: str = "final loss") -> Axes:
    """Draw how much each label differs from the first one, replica by replica: the mean and its interval.

    `frame` has the columns label, difference, difference_low and difference_high, in order. A difference whose interval
    holds zero is grey: on these replicas it cannot be told from none. The first row is the reference.
    """
    frame = checked("paired_differences", frame, "label", "difference", "difference_low", "difference_high")
    numbers = frame[["difference_low", "difference", "difference_high"]].to_numpy(dtype=np.float64)
    for place, (low, middle, high) in enumerate(numbers.tolist()):
        told_apart = low > 0 or high < 0
        colour = COLOURS[0] if told_apart else GREY
        ax.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
        ax.plot([middle], [place], "o", color=colour, markersize=6)
    ax.axvline(0, color="black", linewidth=0.8, zorder=0)
    ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useMathText=True)
    ax.locator_params(axis="x", nbins=6)
    ax.set_yticks(range(len(frame)), [str(label) for label in frame["label"]])
    ax.invert_yaxis()
    note(ax, "mean of the paired differences and its 95 % interval; grey: cannot be told from none")
    return finish(ax, f"difference in {name} to the first row", "", grid="x", legend=False)
