"""Plots of runs that meet saddle points: the way over a landscape, the energy, and what it costs as problems grow.

They are part of `asyncsim.plots`, and like all there draw one tidy frame on one `ax`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from asyncsim.figures import GREY, checked, finish, groups_of, log_scale, note, refuse_empty

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

#: Points of the grid on which a landscape is computed, in each direction.
GRID = 241

#: Lines of equal height.
HEIGHTS = 24

#: A quantity that is swept over a larger factor than this is drawn on a logarithmic axis.
WIDE = 30.0


def landscape(ax: Axes, frame: DataFrame, value: Callable[[np.ndarray], np.ndarray]) -> Axes:
    """Draw lines of equal f in the plane, and the ways that replicas took over it, from a ring to a dot.

    `frame` has the columns replica, update, x1, x2 and, to compare several methods, `label`. `value` returns f of
    points of shape (n, 2). Heights are quantiles of f over the picture, so that flat parts have lines, too.
    """
    frame = checked("landscape", frame, "replica", "update", "x1", "x2")
    points = frame[["x1", "x2"]].to_numpy(dtype=np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    refuse_empty("landscape", points, "no point is finite")
    low, high = points.min(axis=0), points.max(axis=0)
    # Never flatter than three to one, so that a way along an axis shows what lies beside it.
    half = 0.6 * np.maximum(high - low, np.max(high - low) / 3 or 1.0)
    axes = np.linspace((low + high) / 2 - half, (low + high) / 2 + half, GRID)
    first, second = np.meshgrid(axes[:, 0], axes[:, 1])
    heights = np.asarray(value(np.stack([first, second], axis=-1).reshape(-1, 2))).reshape(first.shape)
    levels = np.unique(np.quantile(heights, np.linspace(0.002, 0.98, HEIGHTS)))
    if levels.size > 1:
        ax.contourf(first, second, heights, levels, cmap="Greys", alpha=0.35, extend="both")
        ax.contour(first, second, heights, levels, colors=GREY, linewidths=0.5, linestyles="solid")
    for label, colour, rows in groups_of(frame):
        name = label or None
        for _, way in rows.sort_values("update").groupby("replica"):
            x, y = way["x1"].to_numpy(), way["x2"].to_numpy()
            ax.plot(x, y, color=colour, linewidth=1.3, marker=".", markersize=3, alpha=0.8, label=name)
            ax.plot(x[:1], y[:1], "o", color=colour, markerfacecolor="white", markersize=7, zorder=3)
            ax.plot(x[-1:], y[-1:], "o", color=colour, markersize=7, zorder=4)
            name = None
    ax.set_xlim(axes[0, 0], axes[-1, 0])
    ax.set_ylim(axes[0, 1], axes[-1, 1])
    note(ax, "from ring to dot")
    return finish(ax, "$x_1$", "$x_2$", legend="label" in frame, grid="")


def energy(ax: Axes, frame: DataFrame) -> Axes:
    """Draw the energy of the first replica per update, the loss below it, and where the model was perturbed.

    `frame` has the columns replica, update, metric and value, with the metric "energy" and, if they were measured,
    "loss" and "perturbations" (so far).
    """
    frame = checked("energy", frame, "replica", "update", "metric", "value")
    frame = frame[frame["replica"] == frame["replica"].min()].sort_values("update")
    curves = {name: frame[frame["metric"] == name] for name in ("energy", "loss", "perturbations")}
    refuse_empty("energy", curves["energy"], "no 'energy' was measured")
    so_far = curves["perturbations"]
    instants = so_far["update"].to_numpy()[1:][np.diff(so_far["value"].to_numpy()) > 0]
    for place, update in enumerate(instants):
        ax.axvline(update, color="#D55E00", linewidth=1.0, label="perturbation" if place == 0 else None)
    for name, colour in (("loss", GREY), ("energy", "#0072B2")):
        if len(curves[name]):
            ax.plot(curves[name]["update"], curves[name]["value"], color=colour, label=name)
    values = curves["energy"]["value"].to_numpy(dtype=np.float64)
    if values.min() > 0 and values.max() > 10 * values.min():
        log_scale(ax, values.min(), values.max())
    ax.margins(x=0.01)
    return finish(ax, "updates", "energy")


def scaling(ax: Axes, frame: DataFrame, *, name: str, measured: str) -> Axes:
    """Draw what runs took against a number that was swept: the median over replicas, and bars from least to most.

    `frame` has the columns replica, number, value (NaN where a replica did not arrive) and, to compare several methods,
    `label`. `name` and `measured` say what number and value are. Where more than half of the replicas did not arrive
    there is no median; a cross at the top says so. On a logarithmic axis a bar that begins at 0 begins at the bottom.
    """
    frame = checked("scaling", frame, "replica", "number", "value")
    refuse_empty("scaling", frame["value"].dropna(), "no replica arrived")
    missed, lowest = False, np.inf
    for label, colour, rows in groups_of(frame):
        cells = rows.groupby("number")["value"]
        number = np.unique(rows["number"].to_numpy())
        table = [cells.get_group(place).fillna(np.inf).to_numpy(dtype=np.float64) for place in number]
        middle = np.array([np.median(values) for values in table])
        arrived = np.isfinite(middle)
        lowest = min(lowest, middle[arrived].min(initial=np.inf))
        least = np.array([values.min() for values in table])
        most = np.array([values[np.isfinite(values)].max(initial=m) for values, m in zip(table, least, strict=True)])
        ax.plot(number[arrived], middle[arrived], "o-", color=colour, markersize=5, label=label or None)
        ax.vlines(number[arrived], least[arrived], most[arrived], color=colour, linewidth=2.5, alpha=0.4)
        if not arrived.all():
            missed = True
            top = np.full((~arrived).sum(), 0.985)
            ax.plot(number[~arrived], top, "x", color=colour, markersize=8, transform=ax.get_xaxis_transform())
    numbers, values = frame["number"].to_numpy(dtype=np.float64), frame["value"].dropna().to_numpy(dtype=np.float64)
    if numbers.min() > 0 and numbers.max() > WIDE * numbers.min():
        ax.set_xscale("log")
    positive = values[values > 0]
    if lowest > 0 and positive.size and positive.max() > 10 * positive.min():
        log_scale(ax, positive.min(), positive.max())
        ax.set_ylim(bottom=0.7 * positive.min())
    some = " that arrived" * bool(frame["value"].isna().any())
    note(ax, f"median of the replicas; bars: least and most{some}" + "; cross: most did not arrive" * missed)
    return finish(ax, name, measured, legend="label" in frame)
