"""What the command line prints: a run's summary beside theory, what a scenario would take, which names there are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asyncsim.cost import TRIED_BY_SEARCH, cost
from asyncsim.scenario import RunSettings, Scenario


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return a run's summary as aligned lines: measured, and what theory says where it says something."""
    theory = summary["theory"]
    unit = summary["time_unit"]
    stale = summary["staleness"] or {}
    recorded = summary.get("recorded", {})
    # The number follows from the mean alone, which says nothing about the law; only theory tells that it is geometric.
    geometric = "implied_momentum" in theory
    implied = "momentum implied by staleness" if geometric else "momentum, were staleness geometric"
    rows: list[tuple[str, Any, Any]] = [
        ("updates", summary["updates"], None),
        (f"{'time' if recorded else 'virtual time'} [{unit}]", summary["time"], None),
        (f"throughput [updates/{unit}]", summary["throughput"], theory.get("throughput")),
        (f"service time [{unit}]: mean", recorded.get("service_mean"), theory.get("service_mean")),
        ("share of time computing", recorded.get("share_computing"), None),
        ("share of reads of mixed versions", recorded.get("mixed_reads"), None),
        ("staleness: mean", stale.get("mean"), theory.get("staleness_mean")),
        ("staleness: variance", stale.get("var"), theory.get("staleness_var")),
        ("staleness: 99th percentile", stale.get("p99"), theory.get("staleness_p99")),
        (implied, summary.get("implied_momentum"), theory.get("implied_momentum")),
    ]
    fit = summary.get("momentum")
    if fit and "refused" not in fit:
        rows.append(("momentum fitted", fit["momentum"], theory.get("momentum")))
    rate = summary.get("rate")
    if rate and "refused" not in rate:
        rows.append(("rate of √E‖x − x*‖² per update", rate["rate"], theory.get("rate")))
    rows += [(f"final {name}", value, None) for name, value in summary.get("final", {}).items()]
    target = summary.get("target")
    if target:
        rows.append((f"{target['condition']}: replicas", f"{target['reached']} of {summary['replicas']}", None))
        rows += [(f"{target['condition']}: {what}", target[what], None) for what in ("updates", "time")]
    orders = [found["order"] for found in summary.get("certificate", [])]
    for order, words in ((2, "second order"), (1, "first order only")) if orders else ():
        if order == 2 or order in orders:
            rows.append((f"stationary, {words}: replicas", f"{orders.count(order)} of {len(orders)}", None))
    region = summary.get("saddle_region", {})
    for what, values in region.items():
        rows.append((f"in the saddle region: {what}", sum(values) / len(values), None))
    for what, values in summary.get("method", {}).items():
        if isinstance(values, list) and values and all(type(value) in (int, float) for value in values):
            rows.append((what.replace("_", " "), sum(values) / len(values), None))
    unused = {name: count for name, count in summary["gradients"].items() if name != "applied" and count}
    rows += [(f"gradients {name}", count, None) for name, count in unused.items()]
    replicas = summary["replicas"]
    workers = summary["workers"]
    lines = [
        f"{summary['name']}: {workers} worker{'s' * (workers != 1)}, {replicas} replica{'s' * (replicas != 1)}",
        f"{'':<34}{'measured':>12}  {'theory':>10}",
    ]
    for name, measured, predicted in rows:
        if measured is not None:
            expected = "" if predicted is None else shown(predicted)
            lines.append(f"{name:<34}{shown(measured):>12}  {expected:>10}".rstrip())
    if "data" in summary:
        lines.append(data_line(summary["data"]))
    if recorded:
        how = recorded["backend"].replace("_", " ")
        how += "" if recorded["consistency"] == "locked" else f", {recorded['consistency']}"
        lines.append(f"recorded on {how}; replay: {recorded['replay']}")
        if recorded["deaths"]:
            lines.append(f"died on the way: {', '.join(f'worker {worker}' for worker in recorded['deaths'])}")
    if summary.get("engine") == "simpy":
        lines.append("simulated by the SimPy model, which is slower: it was asked for, or a law needs Python")
    for name in ("momentum", "rate"):
        if "refused" in summary.get(name, {}):
            lines.append(f"{name} not fitted: {summary[name]['refused']}")
    reasons = [found.get("first_order_only") for found in summary.get("certificate", [])]
    lines += [f"no certificate of second order: {reason}" for reason in dict.fromkeys(reasons) if reason]
    lines += [f"warning: {warning}" for warning in summary.get("method", {}).get("warnings", [])]
    return lines


def data_line(data: Mapping[str, Any]) -> str:
    """Return how the data were divided among the workers, in words."""
    how = {"iid": "iid", "one_class": "one class each"}.get(data["split"]) or f"Dirichlet({data['alpha']:g}) per class"
    least, most = min(data["samples"]), max(data["samples"])
    many = f"{least:,}" if least == most else f"{least:,}–{most:,}"
    return f"data: {how}, {many} sample{'s' * (most != 1)} a worker"


def shown(value: Any) -> str:
    """Return a number in few digits, a large whole one with separators."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "-" if value != value else str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}" if abs(value) >= 1e4 else f"{int(value)}"
    return f"{value:,.2f}" if 100 <= abs(value) < 1e7 else f"{value:.4g}"


def sweep_lines(scenario: Scenario, frame: Any, folder: Path) -> list[str]:
    """Return a sweep's results as a table: one line per cell, means over replicas; then what was tuned.

    Where some replicas did not reach the target, what it took is the mean of the others, and `reached` is their share.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    swept = list(frame.columns[: list(frame.columns).index("replica")])
    lines = [f"{scenario.name}: {frame.groupby(swept, dropna=False).ngroups} cells, means over replicas"]
    if "updates_to_target" in frame and frame["updates_to_target"].isna().any():
        frame = frame.assign(reached=frame["updates_to_target"].notna())
    table = frame.drop(columns="replica").groupby(swept, sort=False, dropna=False).mean(numeric_only=True)
    table = table[[name for name in table if _is_shown(name, table)]]
    with pd.option_context("display.width", 200, "display.max_columns", 30):
        lines.append(table.to_string(float_format=shown, max_rows=60))
        tuned = folder / "tuned.parquet"
        if tuned.exists():
            best = pq.read_table(tuned).to_pandas()
            if best["mean"].isna().any():
                lines += ["", "no best value where every cell diverged or missed the target in some replica"]
            by = str(scenario.sweep.by) if scenario.sweep else ""
            lines += ["", f"best by {by}" + (", with 95 % intervals:" if by != "rate" else ":")]
            lines.append(best.to_string(index=False, float_format=shown))
            if best["at_edge"].any():
                lines.append("a best value at the edge of its grid may not be the best there is: widen the grid")
        else:
            lines += growth_lines(frame, swept)
    return lines


def growth_lines(frame: Any, swept: list[str]) -> list[str]:
    """Return how what runs took grows with a swept number, a line for each curve of the picture "scaling"; or nothing.

    Numbers over more than one power of ten are taken by their logarithms.
    """
    from asyncsim.estimates import fit_growth
    from asyncsim.pictures import what_grew
    from asyncsim.saddle_plots import WIDE

    found = what_grew(frame, swept)
    lines = []
    for label, rows in [] if found is None else found[0].groupby("label", sort=False):
        table = rows.pivot_table(index="replica", columns="number", values="value", dropna=False)
        numbers = table.columns.to_numpy(dtype=float)
        wide = numbers.min() > 0 and numbers.max() > WIDE * numbers.min()
        fit = fit_growth(np.log10(numbers) if wide else numbers, table.to_numpy(dtype=float))
        if fit is not None:
            ends = (shown(round(10**end if wide else end, 9)) for end in (fit.numbers[0], fit.numbers[-1]))
            parts = (("+", fit.added), ("×", fit.factor), ("bend", fit.bend))
            said = ", ".join(
                f"{sign} {shown(mean)} ({shown(low)} to {shown(high)})"
                for sign, (mean, low, high) in parts
                if not math.isnan(mean)
            )
            unit = "each factor of ten" if wide else "each"
            lines.append(f"  {label}{': ' * bool(label)}{unit}, from {' to '.join(ends)}: {said}")
    if lines and found is not None:
        head = (
            f"growth of {found[2]} with {found[1]}, 95 % intervals over replicas (bend 0: the same is added each time):"
        )
        lines = ["", head, *lines]
    return lines


#: Endings of columns for which a terminal has no room; `results.parquet` has them all.
HIDDEN = ("_low", "_high", "_refused", "_var", "_p99", "_max", "_step")


def _is_shown(name: str, table: Any) -> bool:
    """Say whether a column of results is worth its place: it differs between cells, and its measurement is shown."""
    measured = name.removesuffix("_theory")
    differs = len(table) == 1 or table[name].nunique(dropna=False) > 1
    return differs and measured in table and not measured.endswith(HIDDEN)


def check_lines(scenario: Scenario, *, name: str) -> list[str]:
    """Return what a scenario would take. These are estimates from means; nothing is run."""
    many = [scenario]
    lines = [f"{name}: valid"]
    if scenario.sweep is not None:
        from asyncsim.cells import cells

        many = [cell.scenario for cell in cells(scenario, name=name)]
        lines.append(f"cells      {len(many):,}")
    rows, memory, seconds = zip(*(cost(one) for one in many), strict=True)
    at_most = "at most" if any(one.run.stop_when for one in many) else "about"
    if math.isnan(sum(rows)):
        return [*lines, f"time       {at_most} {_duration(sum(seconds))}; rows and memory as fast as workers compute"]
    lines.append(f"rows       {at_most} {sum(rows):,.0f} gradients" + (" in all" if len(many) > 1 else ""))
    lines.append(f"memory     {at_most} {_bytes(max(memory))}" + (" for the largest cell" if len(many) > 1 else ""))
    tries = TRIED_BY_SEARCH if scenario.sweep is not None and scenario.sweep.search is not None else 1
    if math.isnan(sum(seconds)):
        return [*lines, "time       as long as its workers compute: measure a short one"]
    where = "of the clock" if scenario.run.source == "record" else "on one core"
    return [*lines, f"time       {at_most} {_duration(tries * sum(seconds))} {where}"]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.0f} TB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def name_lines() -> list[str]:
    """Return every name that a scenario may use, with its fields."""
    from asyncsim.compressors import COMPRESSORS
    from asyncsim.durations import LAWS
    from asyncsim.methods import METHODS
    from asyncsim.methods.projections import PROJECTIONS
    from asyncsim.network import TOPOLOGIES
    from asyncsim.policies import POLICIES
    from asyncsim.problems import PROBLEMS
    from asyncsim.staleness_laws import STALENESS_LAWS

    lines: list[str] = []
    families = (
        ("service, latency: law", LAWS),
        ("policy: kind", POLICIES),
        ("problem: kind", PROBLEMS),
        ("method: kind", METHODS),
        ("method.projection: set", PROJECTIONS),
        ("run.staleness: law", STALENESS_LAWS),
        ("method.compressor: kind", COMPRESSORS),
    )
    for title, registry in families:
        lines += ["", title] if lines else [title]
        for name, kind in registry.items():
            fields = [field for field in kind.model_fields if field not in ("kind", "law", "set")]
            lines.append(f"  {name:<20} {', '.join(fields)}".rstrip())
    lines += ["", f"network: topology\n  {', '.join(TOPOLOGIES)}, or a networkx generator"]
    for name in ("backend", "consistency", "wait", "on_worker_death"):  # of real runs
        lines += ["", f"run: {name}\n  {', '.join(_choices(RunSettings, name))}"]
    return lines


def _choices(kind: Any, name: str) -> list[str]:
    """Return the words that a field may be."""
    schema = kind.model_json_schema()["properties"][name]
    return next(part["enum"] for part in schema.get("anyOf", [schema]) if "enum" in part)
