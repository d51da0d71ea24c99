"""A third engine: a plain event loop, written from docs/trace.md alone, slow and clear.

It shares only the addressed random numbers, the routes, the cables' laws, the checked table and one error message with
the package. The policies stand here a second time, as rows of the document's table.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from itertools import count

import numpy as np

from asyncsim import streams
from asyncsim.durations import Exponential
from asyncsim.sources.table import stands_still
from asyncsim.trace import APPLIED, CANCELLED, DISCARDED, LOST, REQUIRED, TIMES, Trace, UpdateRows, Wasted

APPLY, ARRIVE, PASS_ON, COMPUTED, RECEIVED, CRASHED, RETURNED = range(7)

#: kind: (gradients per update, largest staleness accepted, do workers go on, who is sent the model after an update)
POLICIES = {
    "async": lambda p, m: (1, math.inf, False, "contributors"),
    "sync": lambda p, m: (m, 0, False, "everyone"),
    "k_sync": lambda p, m: (p.k, 0, False, "everyone"),
    "k_batch_sync": lambda p, m: (p.k, 0, True, "everyone"),
    "k_async": lambda p, m: (p.k, math.inf, False, "contributors"),
    "k_batch_async": lambda p, m: (p.k, math.inf, True, "last"),
    "rennala": lambda p, m: (p.batch, 0, True, "last"),
    "ringmaster": lambda p, m: (1, p.max_staleness, False, "contributors"),
}


@dataclass(eq=False)
class Gradient:
    replica: int
    worker: int
    draw: int
    read_version: int
    read_time: float
    start_time: float = math.nan
    done_time: float = math.nan
    arrive_time: float = math.nan
    apply_time: float = math.nan
    update: int = -1
    status: int = -1

    @property
    def place(self):
        """Rows are ordered by arrival; one that never arrived stands where it was cancelled."""
        time, kind = (self.apply_time, RECEIVED) if math.isnan(self.arrive_time) else (self.arrive_time, ARRIVE)
        return time, kind, self.worker, self.draw


class Loop:
    """One replica. Its methods are the handlers of docs/trace.md."""

    def __init__(self, scenario, replica, on_update=None):
        cluster, self.policy, self.workers = scenario.cluster, scenario.policy, scenario.workers
        self.seed, self.replica, self.on_update, self.run_settings = scenario.seed, replica, on_update, scenario.run
        self.k, self.limit, self.goes_on, self.send_to = POLICIES[self.policy.kind](self.policy, self.workers)
        self.laws, self.server, self.network = cluster.laws, cluster.server, cluster.network
        self.instant_server = self.server.service.law == "constant" and self.server.service.value == 0
        self.steps = getattr(scenario.method, "gradients_per_message", 1)
        self.up = self.down = [[]] * self.workers
        if self.network is not None:
            routes = self.network.routes(self.workers)
            self.up, self.down, self.passages = routes.up, routes.down, cluster.passages(routes)
            self.free, self.delivered = [0.0] * routes.links, [0.0] * routes.links
            self.bytes = message_bytes(scenario)
        self.now, self.schedule, self.order = 0.0, [], count()
        self.computing, self.last_sent = [None] * self.workers, [None] * self.workers
        self.version, self.batch, self.jobs, self.busy, self.barrier, self.ended = 0, [], [], False, False, False
        self.rows, self.events, self.at_last_update = [], [], (0, 0)
        self.untold, self.in_order = [], []
        self.crashes, self.crashed, self.is_down = cluster.crashes, [0] * self.workers, [False] * self.workers

    def run(self):
        for worker in range(self.workers):
            self.send_model(worker)
        for worker in self.crashes:
            self.plan_crash(worker)
        while not self.ended:
            if not self.schedule:
                self.stand_still()
            self.now, *_, handler, arguments = heapq.heappop(self.schedule)
            if self.run_settings.time is not None and self.now > self.run_settings.time:
                return
            handler(*arguments)

    def at(self, time, kind, worker, draw, handler, *arguments):
        heapq.heappush(self.schedule, (time, *self.rank(kind, worker, draw), next(self.order), handler, arguments))

    def rank(self, kind, worker, draw):
        return kind, worker, draw

    def duration(self, law, worker, draw, purpose, hop=0):
        return law.sample(self.seed, self.replica, worker, draw, size=1, purpose=purpose, index=hop)[0]

    def settle(self, gradient, status, update=-1):
        gradient.status, gradient.update, gradient.apply_time = status, update, self.now
        if math.isnan(gradient.arrive_time):
            self.in_order.append(gradient)
        self.rows.append(gradient)

    def note(self, kind, worker=-1):
        self.events.append((self.replica, self.now, worker, kind))

    # --- links and workers --------------------------------------------------------------------------------------------

    def travel(self, gradient, route, hop, purpose, last_kind, at_the_end):
        if hop == len(route):
            at_the_end(gradient)
            return
        worker, draw, up = gradient.worker, gradient.draw, purpose == streams.LATENCY_UP
        time = self.join(route[hop], worker, draw, hop, up)
        if time is None:
            self.at(self.given_up, ARRIVE, worker, draw, self.lost, gradient)
            return
        kind = last_kind if hop == len(route) - 1 else PASS_ON
        rest = (gradient, route, hop + 1, purpose, last_kind, at_the_end)
        self.at(time, kind, worker, draw, self.travel, *rest)

    def join(self, link, worker, draw, hop, up):
        """Return when the message is delivered, or None and leave in `given_up` when the link drops it."""
        network, passage, address = self.network, self.passages[link], (worker, draw)
        begin = max(self.now, self.free[link])
        if up and network.longest_wait is not None and begin > self.now + network.longest_wait:
            self.given_up = self.now + network.longest_wait
            return None
        occupied, bandwidth = 0.0, passage.bandwidth
        if bandwidth is not None:
            if not isinstance(bandwidth, float):
                bandwidth = self.duration(
                    bandwidth, *address, streams.BANDWIDTH_UP if up else streams.BANDWIDTH_DOWN, hop
                )
            occupied = self.bytes[0 if up else 1] / bandwidth
        sent, failed = self.attempts(passage.loss, *address, streams.LOSS_UP if up else streams.LOSS_DOWN, hop, up)
        self.free[link] = begin + (sent * occupied + failed * (network.retry_after or 0.0))
        if failed == sent:
            self.given_up = self.free[link]
            return None
        latency = self.duration(passage.latency, *address, streams.LATENCY_UP if up else streams.LATENCY_DOWN, hop)
        self.delivered[link] = max(self.delivered[link], self.free[link] + latency)
        return self.delivered[link]

    def attempts(self, loss, worker, draw, purpose, hop, up):
        """Return how often the message is sent, and how many of these attempts fail."""
        uniform = streams.uniforms(self.seed, self.replica, worker, draw, purpose, hop + 1)[hop]
        failed = math.floor(math.log(uniform) / math.log(loss)) if loss else 0
        most = self.network.retries
        return (most + 1, most + 1) if up and most is not None and failed > most else (failed + 1, failed)

    def model_received(self, gradient):
        worker = gradient.worker
        if self.is_down[worker]:
            self.settle(gradient, LOST)
            self.end_barrier()
            return
        if self.computing[worker] is not None:
            self.settle(self.computing[worker], CANCELLED)
        self.computing[worker], gradient.start_time = gradient, self.now
        first = gradient.draw * self.steps
        draws = range(first, first + self.steps)
        time = sum(self.duration(self.laws[worker], worker, draw, streams.SERVICE) for draw in draws)
        self.at(self.now + time, COMPUTED, worker, gradient.draw, self.computed, gradient)

    def computed(self, gradient):
        if self.computing[gradient.worker] is gradient:  # else it was cancelled
            self.computing[gradient.worker], gradient.done_time = None, self.now
            self.travel(gradient, self.up[gradient.worker], 0, streams.LATENCY_UP, ARRIVE, self.arrived)

    # --- losses and crashes -------------------------------------------------------------------------------------------

    def lost(self, gradient):
        self.settle(gradient, LOST)
        self.end_barrier()
        self.make_up(gradient)

    def make_up(self, gradient):
        update_comes = self.send_to == "everyone" and (self.jobs or self.busy)
        if not self.barrier and not update_comes and self.last_sent[gradient.worker] is gradient:
            self.send_model(gradient.worker)

    def span(self, worker, mean, index):
        law = Exponential(mean=mean)
        return self.duration(law, worker, self.crashed[worker], streams.CRASH, index)

    def plan_crash(self, worker):
        time = self.now + self.span(worker, self.crashes[worker].mean_up, 0)
        self.at(time, CRASHED, worker, 0, self.crash, worker)

    def crash(self, worker):
        self.note("crash", worker)
        self.is_down[worker] = True
        gradient, self.computing[worker] = self.computing[worker], None
        if gradient is not None:
            self.settle(gradient, LOST)
            self.end_barrier()
        if self.crashes[worker].mean_down is not None:
            time = self.now + self.span(worker, self.crashes[worker].mean_down, 1)
            self.at(time, RETURNED, worker, 0, self.come_back, worker)
        self.must_go_on()

    def come_back(self, worker):
        self.note("return", worker)
        self.is_down[worker] = False
        self.crashed[worker] += 1
        if self.last_sent[worker].status == LOST:
            self.make_up(self.last_sent[worker])
        self.plan_crash(worker)
        self.must_go_on()

    def must_go_on(self):
        """Crashes and returns alone are no progress."""
        returning = [w for w, crash in self.crashes.items() if self.is_down[w] and crash.mean_down is not None]
        sent_then = [w for w in returning if self.last_sent[w].status == LOST]
        if not (sent_then or self.jobs or self.busy) and all(map(self.is_back, range(self.workers))):
            self.stand_still()

    def stand_still(self):
        for_good = [w for w, crash in self.crashes.items() if self.is_down[w] and crash.mean_down is None]
        raise stands_still(self.replica, self.version, for_good)

    # --- the server ---------------------------------------------------------------------------------------------------

    def send_model(self, worker):
        draw = 0 if self.last_sent[worker] is None else self.last_sent[worker].draw + 1
        gradient = self.last_sent[worker] = Gradient(self.replica, worker, draw, self.version, self.now)
        self.untold.append(gradient)
        self.travel(gradient, self.down[worker], 0, streams.LATENCY_DOWN, RECEIVED, self.model_received)

    def is_back(self, worker):
        """Say whether what was last sent to the worker has come back, or is lost."""
        return self.last_sent[worker].status == LOST or not math.isnan(self.last_sent[worker].arrive_time)

    def arrived(self, gradient):
        gradient.arrive_time = self.now
        self.in_order.append(gradient)
        update = self.version + len(self.jobs) + self.busy
        if self.barrier:
            self.settle(gradient, DISCARDED)
            self.end_barrier()
        elif update - gradient.read_version > self.limit:
            self.settle(gradient, DISCARDED)
            if self.last_sent[gradient.worker] is gradient and self.send_to != "everyone":
                self.send_model(gradient.worker)
        else:
            self.batch.append(gradient)
            if len(self.batch) == self.k:
                self.batch_complete()
            elif self.goes_on:
                self.send_model(gradient.worker)

    def batch_complete(self):
        job, self.batch = self.batch, []
        self.jobs.append(job)
        if self.server.reply == "before_apply":
            self.reply(job)
        self.begin_job()

    def begin_job(self):
        if self.busy or not self.jobs:
            return
        job, self.busy = self.jobs.pop(0), True
        if self.instant_server:
            self.apply(job)
        else:
            time = self.duration(self.server.service, -1, self.version, streams.SERVER)
            self.at(self.now + time, APPLY, -1, 0, self.apply, job)

    def apply(self, job):
        self.busy = False
        for gradient in job:
            self.settle(gradient, APPLIED, self.version)
        self.version += 1
        answer = "go" if self.on_update is None else self.on_update(self.update_rows(job))
        if answer == "stop":
            self.note("stop")
        self.at_last_update = len(self.rows), len(self.events)
        if answer == "stop" or self.version == self.run_settings.updates:
            self.ended = True
        elif answer == "barrier":
            self.begin_barrier()
        else:
            if self.server.reply == "after_apply":
                self.reply(job)
            if self.policy.kind == "ringmaster" and self.policy.on_stale == "cancel":
                self.stop_the_hopeless()
            self.begin_job()

    def reply(self, job):
        contributors = [gradient.worker for gradient in job]
        everyone = range(self.workers)
        for worker in {"contributors": contributors, "last": contributors[-1:], "everyone": everyone}[self.send_to]:
            self.send_model(worker)

    def stop_the_hopeless(self):
        for worker in range(self.workers):
            if not self.is_back(worker) and self.version - self.last_sent[worker].read_version > self.limit:
                self.send_model(worker)

    def begin_barrier(self):
        self.barrier = True
        for gradient in self.waiting():
            self.settle(gradient, DISCARDED)
        self.jobs, self.batch = [], []
        self.end_barrier()

    def end_barrier(self):
        if self.barrier and all(self.is_back(worker) for worker in range(self.workers)):
            self.barrier = False
            self.note("barrier")
            for worker in range(self.workers):
                self.send_model(worker)

    def waiting(self):
        return [gradient for batch in (*self.jobs, self.batch) for gradient in batch]

    def update_rows(self, job):
        come = self.in_order[: self.in_order.index(job[-1]) + 1]
        to_come = [g for g in self.untold if g not in come]
        first = [min((g.draw for g in to_come if g.worker == w), default=math.inf) for w in range(self.workers)]
        told = [g for g in come if g.draw < first[g.worker]]
        self.in_order, self.untold = ([g for g in part if g not in told] for part in (self.in_order, self.untold))
        oldest = min((g.read_version for g in self.untold), default=self.version)
        wasted = [g for g in told if g.status in (DISCARDED, LOST) and not math.isnan(g.done_time)]
        lost = np.array([g.status == LOST for g in wasted])
        one, other = (
            [np.array([getattr(g, name) for g in rows]) for name in ("worker", "draw", "read_version")]
            + [np.full(len(rows), -1)]
            for rows in (job, wasted)
        )
        return UpdateRows(self.replica, self.version - 1, self.now, *one, oldest, wasted=Wasted(*other, lost))

    # --- the table ----------------------------------------------------------------------------------------------------

    def table(self):
        """Return the rows that count: settled by the last update, no earlier draw of the worker being unsettled."""
        rows, _ = self.at_last_update
        draws = {(g.worker, g.draw) for g in self.rows[:rows]}
        first_unsettled = [next(draw for draw in count() if (w, draw) not in draws) for w in range(self.workers)]
        return sorted((g for g in self.rows[:rows] if g.draw < first_unsettled[g.worker]), key=lambda g: g.place)


def message_bytes(scenario):
    """Return the bytes of a message up and of one down."""
    if hasattr(scenario.method, "message_bytes"):
        return scenario.method.message_bytes(scenario.problem, scenario.workers)
    return (8, 8) if scenario.problem is None else (8 * scenario.problem.dimension,) * 2


def reference_trace(scenario, replicas=None, on_update=None, loop=Loop) -> Trace:
    """Return the trace that docs/trace.md defines; a test may give a `loop` with a rule broken."""
    identifiers = range(scenario.run.replicas) if replicas is None else replicas
    runs = [loop(scenario, replica, on_update) for replica in identifiers]
    for run in runs:
        run.run()
    rows = [gradient for run in runs for gradient in run.table()]
    columns = {name: np.array([getattr(g, name) for g in rows], kind) for name, kind in REQUIRED.items()}
    columns |= {name: np.array([getattr(g, name) for g in rows], float) for name in TIMES}
    if scenario.cluster.network is not None:
        sent = ~np.isnan(columns["done_time"])
        up, down = message_bytes(scenario)
        columns |= {"bytes_up": sent * up, "bytes_down": np.full(len(rows), down)}
    events = [event for run in runs for event in run.events[: run.at_last_update[1]]]
    updates = [run.version for run in runs]
    return Trace(
        columns, seed=scenario.seed, workers=scenario.workers, updates=updates, replicas=identifiers, events=events
    )
