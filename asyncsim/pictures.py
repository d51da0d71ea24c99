"""Which pictures a run or a sweep gets: the plots of `asyncsim.plots` on the frames of a run directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncsim import plots
from asyncsim.export import has_timeline
from asyncsim.prediction import staleness_law
from asyncsim.runs import Run
from asyncsim.scenario import build


def draw_run(run: Run, folder: Path) -> list[Path]:
    """Draw a run's pictures into a folder: staleness over its theory, the loss, the workers' timeline."""
    scenario = build(run.scenario or {}, folder=folder)
    unit = run.summary["time_unit"]
    warmup = scenario.run.warmup
    frame = run.trace.to_frame()
    drawn = []

    def draw(name: str, plot: Callable[[Any], Any], title: str) -> None:
        drawn.append(_draw(folder / f"{name}.png", plot, title))

    kept = frame[frame["update"] >= warmup]
    if len(kept):
        law = staleness_law(scenario, int(kept["staleness"].max()) + 1)
        draw("staleness", lambda ax: plots.staleness_histogram(ax, kept, theory=law), scenario.description)
    if run.metric_names:
        metric = run.metric_names[0]
        draw("loss", lambda ax: plots.loss(ax, run.metrics, metric=metric), scenario.description)
    if has_timeline(run.trace):
        draw("timeline", lambda ax: plots.timeline(ax, frame, time_unit=unit), scenario.description)
    return drawn


def _draw(path: Path, plot: Callable[[Any], Any], title: str) -> Path:
    """Draw one plot with a title and save it."""
    figure, ax = plots.new_figure()
    plot(ax)
    if title:
        figure.suptitle(title, fontsize="medium")
    return plots.save(figure, path)
