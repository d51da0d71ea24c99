"""The one way in which tests compare two traces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from asyncsim.durations import SimulationError
from asyncsim.trace import Trace


def first_difference(a: Trace, b: Trace) -> str | None:
    """Say in one message where two traces first differ, bit for bit; None if they are the same."""
    for name in ("seed", "workers"):
        if getattr(a, name) != getattr(b, name):
            return f"{name}: {getattr(a, name)} against {getattr(b, name)}"
    for name in ("replicas", "updates"):
        if getattr(a, name).tolist() != getattr(b, name).tolist():
            return f"{name}: {getattr(a, name).tolist()} against {getattr(b, name).tolist()}"
    if a.columns != b.columns:
        return f"columns: {a.columns} against {b.columns}"
    rows = min(len(a), len(b))
    differing = np.zeros(rows, dtype=bool)
    for name in a.columns:
        if a[name].dtype != b[name].dtype:
            return f"type of {name}: {a[name].dtype} against {b[name].dtype}"
        bits = f"u{a[name].dtype.itemsize}"  # NaN equals NaN, and −0.0 is not 0.0
        differing |= a[name][:rows].view(bits) != b[name][:rows].view(bits)
    if differing.any():
        row = int(np.argmax(differing))
        return f"row {row}:\n  {_shown(a, row)}\n  {_shown(b, row)}"
    if len(a) != len(b):
        longer = a if len(a) > len(b) else b
        return f"{len(a)} rows against {len(b)}; the first extra one is row {rows}:\n  {_shown(longer, rows)}"
    if a.events != b.events:
        return f"events: {a.events} against {b.events}"
    return None


def assert_same_trace(a: Trace, b: Trace) -> None:
    """Fail, with the first differing row, unless two traces say the same bit for bit."""
    difference = first_difference(a, b)
    assert difference is None, difference


def outcome(run: Callable[[], Trace]) -> Trace | str:
    """Return the trace that a run makes, or what it says where it stands still: workers may crash for good."""
    try:
        return run()
    except SimulationError as error:
        if "stands still at version" not in str(error):
            raise
        return str(error)


def assert_same_outcome(a: Trace | str, b: Trace | str) -> None:
    """Fail unless two runs make the same trace, or stand still in the same words."""
    if isinstance(a, str) or isinstance(b, str):
        assert a == b
    else:
        assert_same_trace(a, b)


def _shown(trace: Trace, row: int) -> str:
    return ", ".join(f"{name}={trace[name][row]}" for name in trace.columns)
