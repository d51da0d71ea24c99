"""A calibration as text: the [cluster] of a scenario file, and the report on the terminal."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncsim.durations import Constant, Empirical
from asyncsim.results import aside

if TYPE_CHECKING:
    from asyncsim.calibration.result import Calibration, Part

#: Columns of the report's text, and of a comment.
WIDTH = 100
#: Workers that a comment names before it only counts them.
NAMED = 16


def cluster_text(found: Calibration, name: str) -> tuple[str, dict[str, tuple[float, ...]]]:
    """Return the TOML text of a calibration's cluster, and the durations of its files `name`.….csv."""
    files: dict[str, tuple[float, ...]] = {}
    cluster = found.cluster
    groups = [part for part in found.parts if part.name == "workers"]

    def law(value: Any, what: str) -> str:
        if isinstance(value, Empirical):
            file = f"{name}.{what}.csv"
            files[file] = value.values or ()
            return f'{{ law = "empirical", file = {json.dumps(file)}, column = "duration" }}'
        return inline(value)

    lines = [f"Calibrated by asyncsim from {found.source}: {found.about}."]
    lines += [f"{note[0].upper()}{note[1:]}." for note in found.notes]
    lines += [f"Beware: {warning}." for warning in found.warnings]
    text = [*_comment(lines), "", "[cluster]", f"time_unit = {json.dumps(cluster.time_unit, ensure_ascii=False)}"]
    for place, group in enumerate(cluster.workers):
        text += ["", *_comment([_said(groups[place])]), "[[cluster.workers]]", f"count = {group.count}"]
        text.append(f"service = {law(group.service, f'workers_{place}')}")
    text += ["", *_comment([_said(part) for part in found.parts if part.name == "server"]), "[cluster.server]"]
    server = cluster.server.service
    if server != Constant(value=0.0):
        text.append(f"service = {law(server, 'server')}")
    text.append(f'reply = "{cluster.server.reply}"')
    if cluster.network is not None:
        text += ["", *_comment([_said(part) for part in found.parts if part.name == "network"]), "[cluster.network]"]
        text += ['topology = "star"', f"latency = {law(cluster.network.latency, 'network')}"]
    return "\n".join(text) + "\n", files


def inline(law: Any) -> str:
    """Return a law as an inline table of TOML.

    >>> from asyncsim.durations import Gamma
    >>> inline(Gamma(shape=4.0, mean=0.5))
    '{ law = "gamma", shape = 4.0, mean = 0.5 }'
    """
    return _toml(law.model_dump(exclude_none=True))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value) if isinstance(value, float | int) else json.dumps(value)


def _said(part: Part) -> str:
    """Return what a fit was made of and how good it is."""
    who = ""
    if part.workers:
        shown = ", ".join(map(str, part.workers[:NAMED])) + " …" * (len(part.workers) > NAMED)
        who = f"Worker{'s' * (len(part.workers) > 1)} {shown} of the trace: "
    return f"{who}n = {part.count:,}, mean {part.mean:.4g}, distance {part.distance:.3f} (chance {part.noise:.3f})."


def _comment(sentences: list[str]) -> list[str]:
    lines: list[str] = []
    for sentence in sentences:
        lines += textwrap.wrap(sentence, WIDTH, break_on_hyphens=False, break_long_words=False)
    return [f"# {line}" for line in lines]


def write(found: Calibration, path: Path) -> list[Path]:
    """Write the cluster's file, and first the durations of empirical laws, so that it never names a missing file."""
    text, files = cluster_text(found, path.stem)
    written = []
    for name, values in files.items():
        target = path.parent / name
        with aside(target) as partial:
            partial.write_text("duration\n" + "".join(f"{value!r}\n" for value in values), encoding="utf-8")
        written.append(target)
    with aside(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return [path, *written]


def report_lines(found: Calibration) -> list[str]:
    """Return the report of a calibration: fits, assumptions, notes, warnings."""
    only_staleness = found.cluster.time_unit == "mean service time"
    lines = [f"{found.source}: {found.about}", ""]
    what = "staleness off by" if only_staleness else "distance"
    rows: list[tuple[str, ...]] = [("fitted", "n", "mean", "law", what, "chance")]
    for part in found.parts:
        law = f"empirical, {len(part.law.values or ())} values" if isinstance(part.law, Empirical) else _short(part.law)
        who = f"workers {_ranges(part.workers)}" if part.workers else part.name
        rows.append((who, f"{part.count:,}", f"{part.mean:.4g}", law, f"{part.distance:.3f}", f"{part.noise:.3f}"))
    lines += _table(rows)
    lines += ["", *_table([("assumption", "", ""), *((a.name, a.verdict, a.figure) for a in found.assumptions)])]
    lines += ["", *found.notes] if found.notes else []
    lines += [f"warning: {warning}" for warning in found.warnings]
    return lines


def _short(law: Any) -> str:
    """Return a law in a few words: gamma(shape 4, mean 0.5)."""
    data = law.model_dump(exclude_none=True)
    if "laws" in data:
        parts = zip(law.weights, law.laws, strict=True)
        return " + ".join(f"{weight:.3g} {_short(part)}" for weight, part in parts)
    return f"{data.pop('law')}({', '.join(f'{key} {value:.4g}' for key, value in data.items())})"


def _ranges(workers: tuple[int, ...]) -> str:
    """Return whole numbers in order as ranges.

    >>> _ranges((0, 1, 2, 5, 7, 8))
    '0–2, 5, 7–8'
    """
    runs: list[list[int]] = []
    for worker in workers:
        if runs and worker == runs[-1][1] + 1:
            runs[-1][1] = worker
        else:
            runs.append([worker, worker])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
