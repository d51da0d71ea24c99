"""Which pictures a run or a sweep gets: the plots of `asyncsim.plots` on the frames of a run directory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncsim import plots
from asyncsim.cells import label
from asyncsim.documents import ScenarioError
from asyncsim.export import beginning, has_timeline
from asyncsim.noise import staleness_counts
from asyncsim.prediction import staleness_law
from asyncsim.problems.base import complete
from asyncsim.results import SCENARIO, scenario_folder
from asyncsim.runs import Run
from asyncsim.scenario import PLANE_METRICS, TRACE_METRICS, build
from asyncsim.staleness import histogram_of
from asyncsim.sweep import CURVES, TUNED, read_results

if TYPE_CHECKING:
    from pandas import DataFrame

    from asyncsim.compare import Comparison

#: Updates that a timeline shows.
SHOWN_UPDATES = 60

#: More lines than this in one picture tell nothing.
MOST_LINES = 10

#: Longer labels are cut down to what tells them apart.
LONGEST_LABEL = 40

Picture = tuple[str, Callable[[Any], Any]]


def draw_run(run: Run, folder: Path) -> list[Path]:
    """Draw a run's pictures into its folder: staleness over its theory, the loss, the workers' timeline and data."""
    import pandas as pd

    scenario = run.scenario or {}
    unit = run.summary["time_unit"]
    chosen: list[Picture] = []
    counts = histogram_of(run.trace, warmup=scenario["run"]["warmup"])
    if counts.any():
        frame = pd.DataFrame({"staleness": np.arange(counts.size), "count": counts})
        law = _law(scenario, counts.size)
        chosen.append(("staleness", lambda ax: plots.staleness_histogram(ax, frame, theory=law)))
    if run.metric_names:
        chosen += _measured(run.metrics, list(run.metric_names))
        chosen += _landscape(run.metrics, scenario, folder)
    if run.trace.updates.any() and has_timeline(run.trace):
        first = beginning(run.trace, SHOWN_UPDATES).to_frame()
        chosen.append(("timeline", lambda ax: plots.timeline(ax, first, updates=SHOWN_UPDATES, time_unit=unit)))
    if "classes" in run.summary.get("data", {}):
        counts = np.array(run.summary["data"]["classes"])
        worker, label = np.indices(counts.shape).reshape(2, -1)
        held = pd.DataFrame({"worker": worker, "class": label, "samples": counts.reshape(-1)})
        chosen.append(("data", lambda ax: plots.shares(ax, held)))
    return _draw(chosen, folder, scenario.get("description", ""))


def _measured(frame: DataFrame, names: list[str]) -> Iterator[Picture]:
    """Yield each metric against updates, the first one as "loss", and that one against bytes where they were measured.

    The energy has the perturbations beside it.
    """
    for place, metric in enumerate(names):
        if place == 0 or metric not in ("energy", "perturbations", *PLANE_METRICS, *TRACE_METRICS):
            yield ("loss" if place == 0 else metric), partial(plots.loss, frame=frame, metric=metric)
    if "bytes" in names[1:]:
        yield "loss_bytes", partial(plots.loss, frame=frame, metric=names[0], against="bytes")
    if "energy" in names:
        yield "energy", partial(plots.energy, frame=frame)


def _landscape(frame: DataFrame, scenario: dict[str, Any], folder: Path) -> Iterator[Picture]:
    """Yield the ways through the plane, where they were measured and there are no further coordinates."""
    if not set(PLANE_METRICS) <= set(frame["metric"].unique()):
        return
    whole = {key: value for key, value in scenario.items() if key != "sweep"}
    problem = complete(build(whole, folder=scenario_folder(folder)).problem)
    if problem.dimension != 2:
        return
    keys = ["replica", "update", *(["label"] if "label" in frame else [])]
    rows = frame[frame["metric"].isin(PLANE_METRICS)].astype({"metric": str})
    points = rows.pivot_table(index=keys, columns="metric", values="value", sort=False).reset_index()

    def value(x: np.ndarray) -> np.ndarray:
        return problem.value(x) if problem.batched else np.array([problem.value(one) for one in x])

    yield "landscape", lambda ax: plots.landscape(ax, points, value)


def draw_comparison(comparison: Comparison, path: Path) -> Path:
    """Draw two runs over each other: staleness, its tails, and the metric that was compared."""
    import pandas as pd

    counts, curves = [], []
    for name, run in zip("AB", comparison.runs, strict=True):
        values, many = staleness_counts(run.trace, warmup=comparison.warmup)
        counts.append(pd.DataFrame({"staleness": values, "count": many, "label": name}))
        if comparison.metric is not None:
            curves.append(run.metrics.astype({"metric": str}).assign(label=name))
    figure, first = plots.new_figure()
    first.remove()
    wide = figure.subplots(1, 2 + bool(curves))
    figure.set_size_inches(4.5 * len(wide), 4.0)
    frame = pd.concat(counts, ignore_index=True)
    plots.staleness_histogram(wide[0], frame)
    plots.staleness_tails(wide[1], frame)
    if comparison.metric is not None:
        unit = comparison.runs[0].summary.get("time_unit", "s")
        plots.loss(wide[2], pd.concat(curves), metric=comparison.metric, against=comparison.against, time_unit=unit)
    figure.suptitle("A: {}   B: {}".format(*comparison.names), fontsize="medium")
    return plots.save(figure, path)


def _law(scenario: dict[str, Any], size: int) -> Any:
    """Return the staleness law that theory gives; none where the cluster has parts of the user's own."""
    schedule: dict[str, Any] = {key: scenario[key] for key in ("seed", "cluster", "policy", "run") if key in scenario}
    if schedule["run"].get("wait", "none") != "none":  # real workers that take the times of the law
        schedule["run"] = {key: schedule["run"][key] for key in ("updates", "time") if key in schedule["run"]}
    try:
        return staleness_law(build(schedule), size)
    except ScenarioError:
        return None


def draw_sweep(folder: Path) -> list[Path]:
    """Draw a sweep's pictures into its folder: those of `asyncsim.plots` for which its results have the columns."""
    scenario = json.loads((folder / SCENARIO).read_text(encoding="utf-8"))
    unit = scenario.get("cluster", {}).get("time_unit", "s")
    results = read_results(folder)
    tuned = None
    if (folder / TUNED).exists():
        import pyarrow.parquet as pq

        tuned = pq.read_table(folder / TUNED).to_pandas()
    sweep = scenario["sweep"]
    paths = [*sweep.get("grid", {}), *(path for group in sweep.get("zip", []) for path in group)]
    tune = sweep.get("tune") or ()
    tune = (tune,) if isinstance(tune, str) else tuple(tune)
    paths.sort(key=lambda path: path in tune)  # labels name what was compared
    chosen = [*_over_workers(results, tuned, paths), *_regret(results, paths, scenario)]
    chosen += [*_scaling(results, tuned, paths), *_winners(tuned, paths, tune, str(sweep.get("by")), unit)]
    chosen += [*_times(results, unit, tuned, paths), *_differences(tuned, paths, str(sweep.get("by")), unit)]
    if any((folder / CURVES).glob("*.parquet")):
        curves = read_results(folder, CURVES)
        chosen += _curves(curves, unit, tuned, paths)
        if not any(path.startswith("problem.") or path == "problem" for path in paths):
            chosen += _landscape(_labelled(_best(curves, tuned, paths), paths), scenario, folder)
    return _draw(chosen, folder, scenario.get("description", ""))


def _draw(chosen: list[Picture], folder: Path, title: str) -> list[Path]:
    """Draw each picture with the title, and save it under its name."""
    drawn = []
    for name, plot in chosen:
        figure, ax = plots.new_figure()
        plot(ax)
        if title:
            figure.suptitle(title, fontsize="medium")
        drawn.append(plots.save(figure, folder / f"{name}.png"))
    return drawn


def _over_workers(results: DataFrame, tuned: DataFrame | None, paths: list[str]) -> Iterator[Picture]:
    """Yield the fitted momentum, and the best explicit one, against the number of workers, where that is swept."""
    counts = [path for path in paths if path.startswith("cluster.workers.") and path.endswith(".count")]
    if len(counts) != 1:
        return
    count = counts[0]
    others = [path for path in paths if path != count]
    if "momentum" in results and "momentum_low" in results:
        fitted = results[~results["momentum_refused"].astype(bool)].dropna(subset=["momentum"])
        frame = _labelled(fitted, others).drop_duplicates([count, *others])
        frame = frame.rename(columns={count: "workers", "momentum_low": "low", "momentum_high": "high"})
        if len(frame):
            several = frame["label"].nunique() > 1
            yield "momentum", lambda ax: plots.momentum_sweep(ax, frame if several else frame.drop(columns="label"))
    if tuned is not None and "method.momentum" in tuned and count in tuned:
        best = _optimum_frame(tuned, count, [path for path in others if not path.startswith("method.")])
        yield "optimum", lambda ax: plots.optimum_sweep(ax, best)


def _optimum_frame(tuned: DataFrame, count: str, others: list[str]) -> DataFrame:
    """Return the measured best explicit momentum and, where `tuned` has them, the optima that theory gives."""
    import pandas as pd

    frame = _labelled(tuned.dropna(subset=["method.momentum"]), others).rename(columns={count: "workers"})
    kinds = {"method.momentum": "measured", "best_momentum_mean_square": "mean square", "best_momentum_mean": "mean"}
    parts = [
        frame[["workers", "label"]].assign(momentum=frame[column], criterion=criterion)
        for column, criterion in kinds.items()
        if column in frame
    ]
    return pd.concat(parts, ignore_index=True)


def _regret(results: DataFrame, paths: list[str], scenario: dict[str, Any]) -> Iterator[Picture]:
    """Yield regret against updates, one line per delay, a picture for each value of what else is swept."""
    delay = "run.staleness.value"
    if "regret" not in results or delay not in results:
        return
    others = [path for path in paths if path not in (delay, "run.updates")]
    others = [path for path in others if results.groupby(delay)[path].nunique(dropna=False).max() > 1]  # not with it
    frame = _labelled(results, others).rename(columns={delay: "delay"})
    for name in frame["label"].unique():
        rows = frame[frame["label"] == name]
        # Strongly convex losses: regret grows like log T; others: like its root.
        slope = None if scenario["problem"].get("loss") == "square" else 0.5
        yield "_".join(["regret", *_words(name)]), partial(plots.regret, frame=rows, slope=slope)


def _scaling(results: DataFrame, tuned: DataFrame | None, paths: list[str]) -> Iterator[Picture]:
    """Yield what runs took against a swept number."""
    found = what_grew(results, paths) if tuned is None else None
    if found is not None and found[0]["label"].nunique() <= MOST_LINES:
        frame, said, measured = found
        frame = frame if frame["label"].nunique() > 1 else frame.drop(columns="label")
        yield "scaling", lambda ax: plots.scaling(ax, frame, name=said, measured=measured)


def what_grew(results: DataFrame, paths: list[str]) -> tuple[DataFrame, str, str] | None:
    """Return what runs took for each number of the problem or the method that was swept over four values or more.

    That is the updates to the target or, without one, to the end of a method that ends itself. The frame has the
    columns replica, label, number and value, NaN where a replica did not arrive; then come what number and value are.
    None where there is no such number, or nobody arrived.
    """
    import pandas as pd

    numbers = [
        path
        for path in paths
        if path.startswith(("problem.", "method."))
        and pd.api.types.is_numeric_dtype(results[path])
        and results[path].nunique() >= 4
    ]
    if not numbers:
        return None
    number = numbers[0]
    if "updates_to_target" in results:
        value, measured = results["updates_to_target"], "updates to target"
    elif "certificate" in results and "finished" in results:
        value, measured = results["updates"].where(results["finished"]), "updates to the method's own end"
    else:
        return None
    results = results.assign(_took=value.astype(float))
    paths = [path for path in paths if path == number or path in _telling(results, paths, ["replica"], "_took")]
    results = results.drop_duplicates([*paths, "replica"])
    moving = [path for path in paths if results.groupby(path, dropna=False)[number].nunique().max() > 1]
    frame = _labelled(results, [path for path in moving if path != number])
    frame = frame[["replica", "label"]].assign(number=results[number], value=results["_took"])
    return (frame, _said(number), measured) if frame["value"].notna().any() else None


def _said(path: str) -> str:
    """Return a path in words: its last one, but "workers" where those of the only group are counted."""
    return "workers" if path == "cluster.workers.0.count" else path.rpartition(".")[2].replace("_", " ")


def _times(results: DataFrame, unit: str, tuned: DataFrame | None, paths: list[str]) -> Iterator[Picture]:
    """Yield the time to the target, one bar per (best) cell; theory: the updates over the formula's throughput."""
    if "time_to_target" not in results or results["time_to_target"].isna().all():
        return
    frame = _labelled(_best(results, tuned, paths), paths)
    if not 1 < frame["label"].nunique() <= MOST_LINES:
        return
    bars = frame[["label", "replica"]].assign(time=frame["time_to_target"])
    if "throughput_theory" in frame:
        updates = frame.groupby("label")["updates_to_target"].transform("mean")
        bars["theory"] = updates / frame["throughput_theory"]
    yield "time_to_target", lambda ax: plots.time_to_target(ax, bars, time_unit=unit)


def _differences(tuned: DataFrame | None, paths: list[str], by: str, unit: str) -> Iterator[Picture]:
    """Yield the paired differences of what was tuned."""
    if tuned is None or "difference" not in tuned or tuned["difference"].notna().sum() < 2:
        return
    best = _labelled(tuned.dropna(subset=["difference"]), paths)
    if len(best) <= 2 * MOST_LINES:
        yield "tuned", lambda ax: plots.paired_differences(ax, best, name=_judged(by, unit))


def _judged(by: str, unit: str) -> str:
    """Return what a sweep is judged by, in words."""
    names = {"time_to_target": f"time to target ({unit})", "updates_to_target": "updates to target"}
    return names.get(by, f"final {by}")


def _winners(tuned: DataFrame | None, paths: list[str], tune: tuple[str, ...], by: str, unit: str) -> Iterator[Picture]:
    """Yield the map of what was best where two numbers were swept, and what to choose among had names."""
    import pandas as pd

    if tuned is None:
        return
    numbers = [path for path in paths if path not in tune and pd.api.types.is_numeric_dtype(tuned[path])]
    named = [path for path in tune if not pd.api.types.is_numeric_dtype(tuned[path])]
    if len(numbers) != 2 or len(named) != 1 or tuned.groupby(numbers).size().max() > 1:
        return
    frame = pd.DataFrame({axis: tuned[path] for axis, path in zip("xy", numbers, strict=True)})
    frame = frame.assign(label=tuned[named[0]], value=tuned["mean"])
    x, y = map(_said, numbers)
    if frame["label"].notna().any():
        yield "winners", lambda ax: plots.winners(ax, frame, x=x, y=y, value=_judged(by, unit))


def _best(frame: DataFrame, tuned: DataFrame | None, paths: list[str]) -> DataFrame:
    """Return the rows of the best cells where there was tuning, else all."""
    return frame if tuned is None else frame.merge(tuned.dropna(subset=paths)[paths], on=paths)


def _curves(curves: DataFrame, unit: str, tuned: DataFrame | None, paths: list[str]) -> Iterator[Picture]:
    """Yield the first metric against updates and against time, one line per cell or, where tuned, per best cell.

    Where there are no times, machines that change nothing else are one line.
    """
    best = _best(curves, tuned, paths)
    names = [str(name) for name in best["metric"].unique()]
    place = ["replica", "update", "metric"]
    telling = _telling(best, paths, place, "value")
    timeless = _labelled(best.drop_duplicates([*telling, *place]), telling)
    if 0 < timeless["label"].nunique() <= MOST_LINES:
        yield from _measured(timeless, [name for name in names if name != "energy"])
    frame = _labelled(best, paths)
    if 0 < frame["label"].nunique() <= MOST_LINES and frame["time"].notna().all():
        yield "loss_time", lambda ax: plots.loss(ax, frame, metric=names[0], against="time", time_unit=unit)


def _telling(frame: DataFrame, paths: list[str], place: list[str], value: str) -> list[str]:
    """Return the paths without those of machines (network, service) on which the value depends at no place.

    Methods that do the same all the same keep their lines: that they do is worth seeing.
    """
    kept = list(paths)
    for path in [path for path in paths if path.startswith("cluster.")]:
        others = [other for other in kept if other != path]
        groups = frame.groupby([*others, *place], dropna=False, observed=True)
        cells = groups[path].nunique(dropna=False)
        if cells.min() == cells.max() > 1 and groups[value].nunique(dropna=False).max() == 1:
            kept = others
    return kept


def _labelled(frame: DataFrame, paths: list[str]) -> DataFrame:
    """Return the frame with a column `label` that tells its cells apart by the values of the swept paths.

    A path that says no more than those before it (it moves with them) would make the label longer, not clearer.
    """
    telling: list[str] = []
    for path in paths:
        groups = [rows for _, rows in frame.groupby(telling, dropna=False, sort=False)] if telling else [frame]
        if any(rows[path].nunique(dropna=False) > 1 for rows in groups):
            telling.append(path)
    if not telling:
        return frame.assign(label="")
    frame = frame.assign(**{path: _short(frame[path]) for path in telling})
    if len(telling) == 1 and not _is_number(frame[telling[0]].iloc[0]):
        return frame.assign(label=frame[telling[0]].map(label))
    said = [frame[path].map(_named(path)) for path in telling]
    return frame.assign(label=[", ".join(filter(None, words)) for words in zip(*said, strict=True)])


def _short(values: Any) -> Any:
    """Return tables of many words by their kind, and what not every table of that kind says."""
    if _is_number(values.iloc[0]):
        return values
    words = [re.split(r" (?=\w+=)", str(value)) for value in values.unique()]

    def short(value: Any) -> Any:
        kind, *said = re.split(r" (?=\w+=)", str(value))
        alike = [other for other in words if other[0] == kind]
        telling = [word for word in said if not all(word in other for other in alike)]
        return " ".join([kind, *telling]) if len(str(value)) > LONGEST_LABEL else value

    return values.map(short)


def _named(path: str) -> Callable[[Any], str]:
    """Return how a value of this path is said in a label: a number with its name, a word alone, "yes" by its name."""
    name = _said(path)

    def said(value: Any) -> str:
        if isinstance(value, bool | np.bool_):
            return name if value else ""
        return f"{name} {label(value)}" if _is_number(value) else label(value)

    return said


def _is_number(value: Any) -> bool:
    return not isinstance(value, str)


def _words(text: str) -> list[str]:
    """Return the words of a label, for a file's name."""
    return "".join(c if c.isalnum() else " " for c in text).split()
