"""Where two runs part: the first row of their schedules, or the first update of their models, that differs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from asyncsim.computed import GONE, computed
from asyncsim.replay import Replayer
from asyncsim.runs import Run
from asyncsim.scenario import ScenarioError, build
from asyncsim.trace import APPLIED, Trace, UpdateRows, Wasted

#: Columns that make a schedule; times and bytes are not among them.
SCHEDULE = ("replica", "worker", "draw", "read_version", "update", "status")


def first_other_row(a: Trace, b: Trace) -> int | None:
    """Return the first row at which two schedules differ, whatever their times; None where they are the same."""
    begin = 0
    for one, other in _side_by_side(a, b):
        unequal = np.any([one[name] != other[name] for name in SCHEDULE], axis=0)
        if unequal.any():
            return begin + int(np.argmax(unequal))
        begin += unequal.size
    return None if begin == len(a) == len(b) else begin


def _side_by_side(a: Trace, b: Trace) -> Iterator[tuple[dict[str, np.ndarray], ...]]:
    """Yield the columns of two schedules in parts of the same rows, until one of them ends."""
    sources = [trace.parts(*SCHEDULE) for trace in (a, b)]
    held: list[dict[str, np.ndarray]] = [{}, {}]
    while True:
        for side, source in enumerate(sources):
            while not held[side] or not held[side]["draw"].size:
                part = next(source, None)
                if part is None:
                    return
                held[side] = part
        rows = min(part["draw"].size for part in held)
        yield tuple({name: column[:rows] for name, column in part.items()} for part in held)
        held = [{name: column[rows:] for name, column in part.items()} for part in held]


def has_model(run: Run) -> bool:
    """Say whether a run holds the problem and the method that it was replayed with."""
    return run.scenario is not None and "problem" in run.scenario


def first_divergence(a: Run, b: Run) -> tuple[int, int] | None:
    """Replay two runs of one schedule side by side; return the first (replica, update) whose model differs.

    Versions are compared bit by bit. None where all are the same, or where a run does not hold its problem and method.
    """
    from threadpoolctl import threadpool_limits

    replayers = []
    for run in (a, b):
        try:
            scenario = build(run.scenario) if has_model(run) else None  # type: ignore[arg-type]
        except ScenarioError:  # it names an object of the user's own that cannot be found here
            scenario = None
        if scenario is None:
            return None
        seed, workers = run.trace.seed, run.trace.workers
        replayers.append(Replayer(scenario.method, scenario.problem, seed=seed, workers=workers))
    with threadpool_limits(limits=1, user_api="blas"):
        ended = None
        for rows in _updates(a.trace, remembered=any(replayer.method.remembers for replayer in replayers)):
            if rows.replica == ended:
                continue
            answers = [replayer.step(rows) for replayer in replayers]
            one, other = (np.asarray(replayer.state.x) for replayer in replayers)
            if one.shape != other.shape or one.tobytes() != other.tobytes():
                return rows.replica, rows.update
            if "stop" in answers:  # no longer finite, both of them: there is no version to go on from
                ended = rows.replica
    return None


def _updates(trace: Trace, *, remembered: bool) -> Iterator[UpdateRows]:
    """Yield the rows of each update, replica by replica; with those wasted where workers have `remembered` them."""
    if remembered:
        yield from _updates_with_wasted(trace)
        return
    worker, draw, read_version, update_of = (trace[name] for name in ("worker", "draw", "read_version", "update"))
    block = trace["block"] if "block" in trace else np.full(len(trace), -1)
    used = trace["status"] == APPLIED
    for replica, count, rows in trace.slices():
        applied = np.flatnonzero(used[rows]) + rows.start
        applied = applied[np.argsort(update_of[applied], kind="stable")]
        ends = np.searchsorted(update_of[applied], np.arange(count + 1))
        read = read_version[applied]
        oldest = np.append(np.minimum.accumulate(read[::-1])[::-1], count)
        for update in range(count):
            mine = applied[ends[update] : ends[update + 1]]
            yield UpdateRows(
                replica=replica,
                update=update,
                time=math.nan,
                worker=worker[mine],
                draw=draw[mine],
                read_version=read_version[mine],
                block=block[mine],
                oldest_read=int(oldest[ends[update + 1]]),
            )


def _updates_with_wasted(trace: Trace) -> Iterator[UpdateRows]:
    for replica, count in zip(trace.replicas.tolist(), trace.updates.tolist(), strict=True):
        parts = list(computed(trace, replica))
        names = ("worker", "draw", "read_version", "update", "into")
        worker, draw, read, before, into = (np.concatenate([part[name] for part in parts]) for name in names)
        block = np.concatenate([part.get("block", np.full(part["draw"].size, -1)) for part in parts])
        ends = np.searchsorted(before, np.arange(count + 1))
        oldest = np.append(np.minimum.accumulate(read[::-1])[::-1], count)
        for update in range(count):
            here = np.arange(ends[update], ends[update + 1])
            mine, others = here[into[here] == update], here[into[here] < 0]
            yield UpdateRows(
                replica=replica,
                update=update,
                time=math.nan,
                worker=worker[mine],
                draw=draw[mine],
                read_version=read[mine],
                block=block[mine],
                oldest_read=int(oldest[ends[update + 1]]),
                wasted=Wasted(worker[others], draw[others], read[others], block[others], into[others] == GONE),
            )
