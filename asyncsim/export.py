"""Traces for other tools: csv, and the Chrome trace format that Perfetto opens as a timeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asyncsim.results import aside
from asyncsim.trace import APPLIED, STATUSES, Trace


def to_csv(trace: Trace, path: str | Path) -> None:
    """Write the table of a trace as csv, `status` in words and the derived staleness beside it."""
    with aside(path) as partial:
        trace.to_frame().to_csv(partial, index=False)


def to_chrome(trace: Trace, path: str | Path, *, time_unit: str = "s") -> None:
    """Write a trace as Chrome trace JSON: open it in Perfetto to see every worker's timeline.

    Each replica is a process and each worker a thread; the server is a thread of its own, with an instant per update.
    The format counts microseconds: one `time_unit` becomes one second (or what the unit says: s, ms, us, min, h).
    """
    scale = {"us": 1.0, "ms": 1e3, "s": 1e6, "min": 6e7, "h": 3.6e9}.get(time_unit, 1e6)
    with aside(path) as partial:
        text = json.dumps({"traceEvents": list(chrome_events(trace, scale)), "displayTimeUnit": "ms"})
        partial.write_text(text, encoding="utf-8")


def chrome_events(trace: Trace, scale: float) -> Iterator[dict[str, Any]]:
    """Yield the events of the Chrome trace format, times multiplied by `scale`."""
    server = trace.workers
    for replica in trace.replicas.tolist():
        yield {"ph": "M", "pid": replica, "name": "process_name", "args": {"name": f"replica {replica}"}}
        for worker in range(trace.workers):
            yield _thread(replica, worker, f"worker {worker}")
        yield _thread(replica, server, "server")
    phases = (
        ("receive", "read_time", "start_time"),
        ("compute", "start_time", "done_time"),
        ("send", "done_time", "arrive_time"),
    )
    for row in range(len(trace)):
        draw, version, update = (int(trace[name][row]) for name in ("draw", "read_version", "update"))
        status = STATUSES[trace["status"][row]]
        about: dict[str, Any] = {"draw": draw, "read_version": version, "update": update, "status": status}
        about["staleness"] = update - version if status == "applied" else None
        place = {"pid": int(trace["replica"][row]), "tid": int(trace["worker"][row])}
        for name, begin, end in phases:
            start, stop = float(trace[begin][row]), float(trace[end][row])
            if name == "compute" and np.isnan(stop):
                stop = float(trace["apply_time"][row])  # cancelled
            if stop > start or (name == "compute" and stop == start):
                shown = name if status == "applied" else f"{name} ({status})"
                span = {"ts": start * scale, "dur": (stop - start) * scale}
                yield {"ph": "X", "name": shown, "cat": name, **span, **place, "args": about}
    for replica in trace.replicas.tolist():
        for update, time in enumerate(trace.update_times(replica).tolist()):
            yield {"ph": "i", "s": "t", "name": f"update {update}", "ts": time * scale, "pid": replica, "tid": server}


def _thread(replica: int, worker: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": replica, "tid": worker, "name": "thread_name", "args": {"name": name}}


def has_timeline(trace: Trace) -> bool:
    """Say whether a trace has the times that a timeline needs."""
    names = ("start_time", "done_time")
    if not all(name in trace for name in names):
        return False
    parts = trace.parts("status", *names)
    return all(not np.isnan(part[name][part["status"] == APPLIED]).any() for part in parts for name in names)


def beginning(trace: Trace, updates: int) -> Trace:
    """Return the gradients of a trace's first replica that were begun before so many of its updates were applied."""
    place = int(np.argmax(trace.updates > 0))
    first, count = int(trace.replicas[place]), int(trace.updates[place])
    end = trace.version_times(first, np.array([min(updates, count)]))[0]
    pieces = []
    for part in trace.parts(*trace.columns):
        rows = (part["replica"] == first) & (part["start_time"] <= end)
        pieces.append({name: column[rows] for name, column in part.items()})
        if (part["replica"] > first).any():
            break
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in trace.columns}
    return Trace.excerpt(trace, columns, slice(place, place + 1))
