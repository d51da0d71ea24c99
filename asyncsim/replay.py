"""The replay: one loop that applies a method to a problem along a trace.

A single replica runs on arrays of shape (d,), exactly as a real worker and server do; many replicas run as a batch on
arrays of shape (replicas, d), each gathering its own stale version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from asyncsim import stored
from asyncsim.blocks import mixed_read
from asyncsim.checksums import checksum
from asyncsim.computed import computed
from asyncsim.measure import Meter, metric_functions
from asyncsim.methods.base import State
from asyncsim.methods.base import complete as complete_method
from asyncsim.problems.base import complete
from asyncsim.problems.empirical_risk import EmpiricalRisk
from asyncsim.runs import Divergence, Run
from asyncsim.scenario import Metrics, ScenarioError, parse_condition
from asyncsim.schedule import BatchSchedule, ReplicaSchedule, Schedule
from asyncsim.stored import StoredTrace
from asyncsim.trace import APPLIED, Row, Trace, UpdateRows, Wasted
from asyncsim.windows import NEEDED, Columns

#: Batches of replicas: their places in the trace, and their schedule.
Plan = list[tuple[np.ndarray, Schedule]]

#: A batch of replicas holds at most this many coordinates.
LARGEST_BATCH = 2_000_000


def replay(
    trace: Trace,
    method: Any,
    problem: Any,
    *,
    record_iterates: bool = False,
    checksums: bool = False,
    metrics: Metrics | None = None,
    end_time: float | None = None,
    plan: Plan | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Run:
    """Run a method on a problem along a trace; the same arguments give the same bits.

    Parameters
    ----------
    trace
        When each gradient was read and applied.
    method, problem
        Values of `asyncsim.methods` and `asyncsim.problems`, or your own objects with the same functions.
    record_iterates
        Keep every version in `run.iterates`.
    checksums
        Keep a checksum of every version in `run.checksums`, one replica at a time, as a real run does.
    metrics
        What to measure and when; the loss at about 100 versions if left out.
    end_time
        End of the time grid of ``metrics.at_times``; the last update's time if left out.
    plan
        What `plan_of` gave for this trace, where the same problem is replayed over and over: it saves half of the time.
    progress
        Called with the number of updates applied since the last call.

    >>> import asyncsim
    >>> from asyncsim.methods import SGD
    >>> from asyncsim.problems import Quadratic
    >>> columns = dict(replica=[0, 0], worker=[0, 0], draw=[0, 1], read_version=[0, 1], update=[0, 1], status=[0, 0])
    >>> trace = asyncsim.Trace(columns, seed=0, workers=1, updates=[2])
    >>> replay(trace, SGD(step=0.5), Quadratic(eigenvalues=[1.0])).final_iterates
    array([[0.25]])
    """
    method, problem, metrics = complete_method(method), complete(problem), metrics or Metrics()
    if isinstance(problem, EmpiricalRisk) and problem.shares and problem.shares.workers != trace.workers:
        said = f"the data are divided among {problem.shares.workers} workers, and the trace has {trace.workers}"
        raise ScenarioError(f"cluster.workers: {said}")
    meter = Meter(problem, metrics, trace.seed, method.message_bytes(problem, trace.workers)[0])
    loop = _Loop(trace, method, problem, meter, record_iterates, checksums, progress)
    alone = checksums or trace.reads is not None
    if end_time is None and trace.has_times:
        end_time = trace.last_time()
    # More than one BLAS thread makes small products slower and their bits depend on the machine's load.
    with threadpool_limits(limits=1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
        for places, schedule in plan or _schedules(trace, method, problem, alone=alone):
            loop.run(places, schedule, end_time)
    return Run(
        trace=trace,
        final_iterates=loop.final,
        iterates=loop.iterates,
        measurements=meter.columns(),
        metric_names=meter.names,
        diverged=tuple(sorted(loop.diverged, key=lambda d: d.replica)),
        squared_distances=loop.squared_distances,
        checksums=tuple(loop.checksums),
        facts=loop.facts,
    )


def plan_of(trace: Trace, method: Any, problem: Any) -> Plan:
    """Return which replicas of a trace go through the loop together, and which versions they keep."""
    return list(_schedules(trace, complete_method(method), complete(problem)))


def _schedules(
    trace: Trace, method: Any, problem: Any, *, alone: bool = False
) -> Iterator[tuple[np.ndarray, Schedule]]:
    """Yield (places, schedule) of replicas that go through the loop together; each by itself if `alone`."""
    if not method.remembers:
        yield from _batches(trace, 1 if alone else _batch_size(trace, method, problem))
        return
    for place, (replica, updates) in enumerate(zip(trace.replicas.tolist(), trace.updates.tolist(), strict=True)):
        yield np.array([place]), ReplicaSchedule(trace, replica, partial(computed, trace, replica), updates)


def _batch_size(trace: Trace, method: Any, problem: Any) -> int:
    """Return how many replicas may run as one batch; 1 where the method or the problem takes one model at a time."""
    if not (method.batched and problem.batched):
        return 1
    return max(1, LARGEST_BATCH // method.size(problem, trace.workers))


def _batches(trace: Trace, largest: int) -> Iterator[tuple[np.ndarray, Schedule]]:
    """Yield (places, schedule) of replicas that go through the loop together.

    Those are replicas with equally many updates of equally many gradients each, in order; any other runs alone.
    Together they have no more rows than may be held, so it does not matter whether the trace lies in memory or a file.
    """
    if isinstance(trace, StoredTrace):
        gradients = np.full(trace.replicas.size, -1)
        for places in trace.groups():
            gradients[places] = _by_update(trace.of_replicas(places))[2]
    else:
        rows, first, gradients = _by_update(trace)
    shapes: dict[tuple[int, int], list[int]] = {}
    for place, (updates, count) in enumerate(zip(trace.updates.tolist(), gradients.tolist(), strict=True)):
        shapes.setdefault((updates, count if count > 0 else -1 - place), []).append(place)
    for (updates, count), members in shapes.items():
        size = min(largest, max(1, stored.LONGEST_IN_MEMORY // max(updates * count, 1)))
        for low in range(0, len(members), size):
            places = np.array(members[low : low + size])
            replicas = trace.replicas[places]
            if isinstance(trace, StoredTrace):
                if len(places) == 1:
                    parts = partial(trace.applied, int(places[0]))
                    yield places, ReplicaSchedule(trace, int(replicas[0]), parts, updates)
                else:
                    part = trace.of_replicas(places)
                    mine = _by_update(part)[0].reshape(len(places), -1)
                    yield places, BatchSchedule(part, replicas, mine, updates, count)
            elif len(places) == 1:
                mine = rows[first[places[0]] : first[places[0] + 1]]
                yield places, ReplicaSchedule(trace, int(replicas[0]), partial(_applied, trace, mine), updates)
            else:
                together = rows[first[places[0]] : first[places[-1] + 1]]
                if together.size > updates * count * len(places):  # rows of others lie between theirs
                    together = np.concatenate([rows[first[place] : first[place + 1]] for place in places])
                mine = together.reshape(len(places), -1)
                yield places, BatchSchedule(trace, replicas, mine, updates, count)


def _by_update(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `rows_by_update` says of a trace."""
    from asyncsim.slots import rows_by_update

    begin, end = (trace["replica"].searchsorted(trace.replicas, side) for side in ("left", "right"))
    update, status = (np.ascontiguousarray(trace[name]) for name in ("update", "status"))
    found = rows_by_update(update, status, APPLIED, begin, end, trace.updates)
    rows, first, gradients = found
    return rows, first, gradients


def _applied(trace: Trace, rows: np.ndarray) -> Iterator[Columns]:
    """Yield what a replay needs of these rows."""
    columns = {name: trace[name][rows] for name in NEEDED if name in trace}
    yield columns if trace.reads is None else {**columns, "reads": trace.reads[rows]}


def advance(
    method: Any,
    problem: Any,
    state: State,
    memories: list[Any],
    rows: list[Row],
    reads: list[Any],
    lost: Sequence[bool] = (),
) -> State:
    """Return the state after one update: each row's message from the version it read, then the server's step.

    Rows whose own update is −1 are computed, for what their workers remember of them, and not applied; of those, some
    may have been `lost`. `memories` holds one entry per worker and is changed in place; where replicas run as a batch
    it is `Shared`.
    """
    if isinstance(memories, Shared):
        payloads = [method.message(problem, x, memories[0], row)[0] for row, x in zip(rows, reads, strict=True)]
        return method.apply(problem, state, payloads, rows)
    payloads = []
    for place, (row, x_read) in enumerate(zip(rows, reads, strict=True)):
        payload, memory = method.message(problem, x_read, memories[row.worker], row)
        memories[row.worker] = method.lost(payload, memory) if lost and lost[place] else memory
        if row.update >= 0:
            payloads.append(payload)
    if len(payloads) < len(rows):
        rows = [row for row in rows if row.update >= 0]
    return method.apply(problem, state, payloads, rows)


class Shared(list[Any]):
    """The workers' memories where replicas run as a batch: nobody's own, so all are alike and stay as they are."""


class _Loop:
    """The loop over updates, and the results that it fills."""

    def __init__(
        self,
        trace: Trace,
        method: Any,
        problem: Any,
        meter: Meter,
        record_iterates: bool,
        checksums: bool,
        progress: Any,
    ):
        self.checksums = [np.empty(count + 1, dtype=np.uint64) for count in trace.updates] if checksums else []
        self.trace, self.method, self.problem, self.meter = trace, method, problem, meter
        self.progress = progress
        replicas, longest, dimension = trace.replicas.size, int(trace.updates.max(initial=0)), problem.dimension
        self.final = np.empty((replicas, dimension))
        self.iterates = np.empty((replicas, longest + 1, dimension)) if record_iterates else None
        self.squared_distances = None
        if "rate" in meter.metrics.record:
            if problem.minimizer is None:
                raise ScenarioError("metrics.record: 'rate' needs a problem that knows its minimizer")
            self.squared_distances = np.empty((replicas, longest + 1))
        self.played = np.zeros(replicas) if "regret" in meter.names else None
        self.diverged: list[Divergence] = []
        self.told = [name for name in meter.names if name in method.measures]
        self.facts: dict[str, np.ndarray] = {}

    def run(self, places: np.ndarray, schedule: Schedule, end_time: float | None) -> None:
        """Run the replicas at these places to their end; one that diverges stays at its last finite version."""
        method, problem = self.method, self.problem
        single = places.size == 1
        replicas = self.trace.replicas[places]
        who = int(replicas[0]) if single else replicas
        state, memories = method.init(problem, problem.initial(self.trace.seed, who), self.trace.workers)
        if not single:
            memories = Shared(memories)
        if self.meter.names:
            self.meter.plan(schedule.updates, schedule.trace, replicas, end_time)
        alive = np.ones(places.size, dtype=bool)
        schedule.write(0, state.x)
        self._record(0, state, places, replicas, alive)
        unreported, remembered = 0, method.remembers
        for update in range(schedule.updates):
            rows = schedule.rows(update)
            reads = [schedule.read(update, gradient) for gradient in range(len(rows))]
            if self.played is not None:
                for row, x_read in ((row, x) for row, x in zip(rows, reads, strict=True) if np.any(row.update >= 0)):
                    self.played[places] += problem.played_loss(method.model(problem, x_read), row)
            before = state.x
            lost = schedule.lost(update) if remembered and isinstance(schedule, ReplicaSchedule) else ()
            state = advance(method, problem, state, memories, rows, reads, lost)
            if not alive.all():
                state = state._replace(x=np.where(alive[:, None], state.x, before))
            if not math.isfinite(np.vdot(state.x, state.x)):
                finite = np.isfinite((state.x.reshape(places.size, -1) ** 2).sum(axis=1))
                self.diverged += [Divergence(int(replica), update) for replica in replicas[~finite]]
                alive &= finite
                if not alive.any():
                    state = state._replace(x=before)
                    self._pad(update, state.x, places)
                    break
                state = state._replace(x=np.where(finite[:, None], state.x, before))
            schedule.write(update + 1, state.x)
            self._record(update + 1, state, places, replicas, alive)
            unreported += places.size
            if self.progress is not None and unreported >= 1000:
                self.progress(unreported)
                unreported = 0
        else:
            self._pad(schedule.updates, state.x, places)
        if self.progress is not None:
            self.progress(unreported)
        self.final[places] = method.model(problem, state.x)
        for name, value in method.facts(problem, state).items():
            value = np.asarray(value)
            self.facts.setdefault(name, np.zeros(self.final.shape[0], dtype=value.dtype))[places] = value

    def _record(self, version: int, state: State, places: np.ndarray, replicas: np.ndarray, alive: np.ndarray) -> None:
        if self.checksums:
            self.checksums[places[0]][version] = checksum(state.x)
        measured = bool(self.meter.names) and self.meter.is_due(version)
        if not measured and self.iterates is None and self.squared_distances is None:
            return
        x = self.method.model(self.problem, state.x)
        if self.iterates is not None:
            self.iterates[places, version] = x
        if self.squared_distances is not None:
            squared = ((x - self.problem.minimizer) ** 2).sum(axis=-1)
            self.squared_distances[places, version] = np.where(alive, squared, np.nan)
        if measured:
            played = None if self.played is None else self.played[places]
            told = {name: np.reshape(self.method.measure(self.problem, state, name), -1) for name in self.told}
            self.meter.measure(version, x.reshape(places.size, -1), replicas, played, alive, told)

    def _pad(self, version: int, x: np.ndarray, places: np.ndarray) -> None:
        """Fill what lies beyond the last version of these replicas with it."""
        if self.checksums:
            self.checksums[places[0]][version + 1 :] = checksum(x)
        if self.iterates is not None:
            self.iterates[places, version + 1 :] = np.reshape(self.method.model(self.problem, x), (places.size, 1, -1))
        if self.squared_distances is not None:
            self.squared_distances[places, version + 1 :] = np.nan


class Replayer:
    """Replays while a simulation runs, and tells it what to do next: `simulate(…, on_update=replayer.step)`.

    It answers what the method requests, or "stop" once `stop_when` (such as "loss < 0.1", looked at every `every`
    updates) holds. Replaying the finished trace gives the same bits again.
    """

    def __init__(
        self, method: Any, problem: Any, *, seed: int, workers: int, stop_when: str | None = None, every: int = 1
    ):
        self.method, self.problem = complete_method(method), complete(problem)
        self.seed, self.workers, self.every = seed, workers, every
        self.condition = None
        if stop_when is not None:
            metric, self.sign, self.bound = parse_condition(stop_when)
            self.condition = metric_functions(self.problem, (metric,)).get(metric)
            if self.condition is None:
                raise ScenarioError(f"run.stop_when: '{metric}' cannot be watched")
        self.replica: int | None = None

    def step(self, rows: UpdateRows) -> str:
        """Apply one update and answer "go", "barrier" or "stop"."""
        if rows.replica != self.replica:
            self.replica = rows.replica
            x0 = self.problem.initial(self.seed, rows.replica)
            self.state, self.memories = self.method.init(self.problem, x0, self.workers)
            self.versions = {0: self.state.x}
            self.next_draw = [0] * self.workers
        gradients = [
            Row(self.seed, rows.replica, int(w), int(draw), rows.update, rows.update - int(version), int(block))
            for w, draw, version, block in zip(rows.worker, rows.draw, rows.read_version, rows.block, strict=True)
        ]
        if rows.reads is None:
            reads = [self.versions[int(version)] for version in rows.read_version]
        else:
            reads = [mixed_read(self.versions, of_block) for of_block in rows.reads.tolist()]
        lost = [False] * len(gradients)
        if self.method.remembers:
            gradients, reads, lost = self._with_wasted(rows.wasted, gradients, reads)
        with np.errstate(over="ignore", invalid="ignore"):
            self.state = advance(self.method, self.problem, self.state, self.memories, gradients, reads, lost)
            if not math.isfinite(np.vdot(self.state.x, self.state.x)):
                return "stop"
            self.versions[rows.update + 1] = self.state.x
            self.versions = {v: x for v, x in self.versions.items() if v >= rows.oldest_read}
            if self.condition is not None and (rows.update + 1) % self.every == 0:
                value = float(self.condition(self.method.model(self.problem, self.state.x)))
                if (value < self.bound) if self.sign == "<" else (value > self.bound):
                    return "stop"
        return self.state.request

    def _with_wasted(
        self, wasted: Wasted | None, gradients: list[Row], reads: list[Any]
    ) -> tuple[list[Row], list[Any], list[bool]]:
        """Return an update's gradients with those computed for nothing among them, each worker's in order of draws."""
        waiting: dict[int, list[tuple[Row, Any, bool]]] = {}
        for worker, draw, version, block, lost in zip(*(field.tolist() for field in wasted or ()), strict=True):
            row = Row(self.seed, gradients[0].replica, worker, draw, block=block)
            waiting.setdefault(worker, []).append((row, self.versions[version], lost))
        for of_worker in waiting.values():
            of_worker.sort(key=lambda entry: -int(entry[0].draw))
        found: list[tuple[Row, Any, bool]] = []

        def take(row: Row, read: Any, lost: bool) -> None:
            before = self.next_draw[row.worker]
            if row.draw < before or (wasted is None and row.draw > before):
                raise ScenarioError(
                    f"the method's workers remember all that they have computed, and what became of draw {before} of "
                    f"worker {row.worker} is not known while the simulation runs: end the run with 'updates' or 'time' "
                    "instead of 'stop_when'"
                )
            self.next_draw[row.worker] = row.draw + 1
            found.append((row, read, lost))

        for row, read in zip(gradients, reads, strict=True):
            of_worker = waiting.get(row.worker, [])
            while of_worker and of_worker[-1][0].draw < row.draw:
                take(*of_worker.pop())
            take(row, read, False)
        for of_worker in waiting.values():
            while of_worker:
                take(*of_worker.pop())
        return [entry[0] for entry in found], [entry[1] for entry in found], [entry[2] for entry in found]
