"""The definition of the simulated cluster, as plain SimPy processes: workers, links and a server.

It is written to be read beside docs/trace.md; the compiled engine must give the same table, bit for bit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from heapq import heappush
from itertools import count
from typing import Any

import numpy as np
import simpy

from asyncsim import streams
from asyncsim.cluster import Cluster, Crash
from asyncsim.durations import Constant, Exponential, SimulationError
from asyncsim.network import Network
from asyncsim.scenario import Scenario
from asyncsim.sources.crossings import INFINITY, AddressedDurations, Crossing, Link
from asyncsim.sources.table import SettledGradients, TraceParts, stands_still
from asyncsim.trace import (
    APPLIED,
    APPLY,
    ARRIVE,
    CANCELLED,
    COMPUTED,
    CRASH,
    DISCARDED,
    HOP,
    LOST,
    RECEIVE,
    RETURN,
    UpdateRows,
    Wasted,
)

OnUpdate = Callable[[UpdateRows], str]
NAN = float("nan")


class Environment(simpy.Environment):
    """SimPy's environment, with events at absolute times under the tie rule of docs/trace.md.

    SimPy schedules by delay, and ``now + (time - now)`` is not always ``time``. So `at` writes to the queue itself.
    SimPy's own events (interrupts, wake-ups) have priorities 0 and 1: they are a handler's bookkeeping, done before
    the next timed event.
    """

    def __init__(self, workers: int):
        super().__init__()
        self.workers = workers

    def at(self, time: float, kind: int, worker: int, draw: int = 0) -> simpy.Event:
        """Return an event that happens at `time`, in the order (kind, worker, draw) among simultaneous ones."""
        event = simpy.Event(self)
        event._ok = True
        event._value = None
        queue: list[Any] = self._queue
        heappush(queue, (time, 2 + kind * self.workers + worker, (draw, next(self._eid)), event))
        return event


class Gradient:
    """One gradient on its way: from the model that the server sends to the fate of the result."""

    __slots__ = (
        "apply_time",
        "arrive_time",
        "done_time",
        "draw",
        "place",
        "read_time",
        "read_version",
        "start_time",
        "status",
        "update",
        "worker",
    )

    def __init__(self, worker: int, draw: int, read_version: int, read_time: float):
        self.worker = worker
        self.draw = draw
        self.read_version = read_version
        self.read_time = read_time
        self.start_time = self.done_time = self.arrive_time = self.apply_time = NAN
        self.place = INFINITY  # among all gradients, in the order in which they arrive or turn out not to
        self.update = -1
        self.status = APPLIED


#: The links that a message crosses, in order.
Way = list[Crossing]


class ClusterModel:
    """One replica of a scenario's cluster."""

    def __init__(
        self,
        scenario: Scenario,
        replica: int,
        *,
        message_bytes: tuple[int, int],
        on_update: OnUpdate | None,
        parts: TraceParts,
    ):
        cluster, policy = scenario.cluster, scenario.policy
        assert cluster is not None
        self.replica = replica
        self.count = cluster.size
        self.env = Environment(self.count)
        self.settled = SettledGradients(parts, replica)
        self.on_update = on_update
        self.last_update = scenario.run.updates
        self.last_time = INFINITY if scenario.run.time is None else scenario.run.time
        self.end = self.env.event()
        self.over = False

        self.batch_size = policy.gradients_per_update(self.count)
        self.staleness_limit = policy.staleness_limit
        self.goes_on, self.sends_to, self.cancels = policy.goes_on, policy.sends_to, policy.cancels
        self.replies_before = cluster.server.reply == "before_apply"

        self.version = 0
        self.batch: list[Gradient] = []
        self.jobs: deque[list[Gradient]] = deque()
        self.latest: list[Any] = [None] * self.count
        self.places = count()
        self.untold: list[deque[Gradient]] = [deque() for _ in range(self.count)]  # what `on_update` has not seen
        self.at_barrier = False

        seed = scenario.seed
        steps = getattr(scenario.method, "gradients_per_message", 1)
        self.service = [
            AddressedDurations(law, seed, replica, worker, streams.SERVICE, steps=steps)
            for worker, law in enumerate(cluster.laws)
        ]
        self.inbox: list[Gradient | None] = [None] * self.count
        self.idle: list[simpy.Event | None] = [None] * self.count
        self.computing: list[Gradient | None] = [None] * self.count

        self.network = cluster.network
        if cluster.network is not None:
            self.connect(cluster, cluster.network, seed, message_bytes)

        server_law = cluster.server.service
        self.takes_no_time = isinstance(server_law, Constant) and server_law.value == 0.0
        self.server_service = AddressedDurations(server_law, seed, replica, -1, streams.SERVER)
        self.server_idle: simpy.Event | None = None

        self.down = [False] * self.count
        self.gone: set[int] = set()
        self.crashes = cluster.crashes
        for worker, crash in self.crashes.items():
            self.env.process(self.crash_and_return(worker, crash, seed))
        self.processes = [self.env.process(self.worker(worker)) for worker in range(self.count)]
        if not self.takes_no_time:
            self.env.process(self.server())

    def run(self) -> int:
        """Run the replica to its end; return its number of updates."""
        self.send_to_all()
        try:
            self.env.run(until=self.end)
        except RuntimeError as error:
            if self.end.triggered or isinstance(error, SimulationError):
                raise
            raise stands_still(self.replica, self.version, self.gone) from error
        self.settled.close(self.version)
        return self.version

    # --- workers -----------------------------------------------------------------------------------------------------

    def worker(self, me: int) -> Generator[simpy.Event, Any, None]:
        """Compute a gradient of each model that comes; a model that comes meanwhile stops the one under way."""
        env, service = self.env, self.service[me]
        while True:
            gradient = self.inbox[me]
            if gradient is None:
                self.idle[me] = wake = env.event()
                yield wake
                continue
            self.inbox[me] = None
            gradient.start_time = env.now
            self.computing[me] = gradient
            try:
                yield env.at(env.now + service(gradient.draw), COMPUTED, me, gradient.draw)
            except simpy.Interrupt:
                continue
            self.computing[me] = None
            gradient.done_time = env.now
            if self.network is None:
                self.arrive(gradient)
            else:
                self.travel(gradient, self.ways_up[me], ARRIVE, self.arrive)

    def stop_computing(self, worker: int, status: int) -> None:
        """Stop the worker's gradient under way, if there is one, and settle it."""
        gradient, self.computing[worker] = self.computing[worker], None
        if gradient is not None:
            self.settle(gradient, status)
            self.processes[worker].interrupt()

    def receive(self, gradient: Gradient, _event: simpy.Event | None = None) -> None:
        """Take the model for this gradient from the network; it is lost where the worker is down."""
        worker = gradient.worker
        if self.down[worker]:
            self.settle(gradient, LOST)
            self.leave_barrier_if_quiet()
            return
        overtaken = self.inbox[worker]
        if overtaken is not None:  # a second model in one handler: the first one was started and stopped at once
            overtaken.start_time = self.env.now
            self.settle(overtaken, CANCELLED)
        self.inbox[worker] = gradient
        idle = self.idle[worker]
        if idle is not None:
            self.idle[worker] = None
            idle.succeed()
        else:
            self.stop_computing(worker, CANCELLED)

    # --- crashes -----------------------------------------------------------------------------------------------------

    def crash_and_return(self, me: int, crash: Crash, seed: int) -> Generator[simpy.Event, Any, None]:
        """Let a worker crash and return, over and over, or crash for good."""
        env, address = self.env, (seed, self.replica, me, streams.CRASH)
        up = AddressedDurations(Exponential(mean=crash.mean_up), *address, index=0)
        down = (
            None
            if crash.mean_down is None
            else AddressedDurations(Exponential(mean=crash.mean_down), *address, index=1)
        )
        for crashes in count():
            yield env.at(env.now + up(crashes), CRASH, me)
            if self.past_the_end():
                return
            self.note("crash", me)
            self.down[me] = True
            if down is None:
                self.gone.add(me)
            self.stop_computing(me, LOST)
            self.leave_barrier_if_quiet()
            self.check_that_something_can_happen()
            if down is None:
                return
            yield env.at(env.now + down(crashes), RETURN, me)
            if self.past_the_end():
                return
            self.note("return", me)
            self.down[me] = False
            if self.latest[me].status == LOST:
                self.make_up_for(self.latest[me])
            self.check_that_something_can_happen()

    def lose(self, gradient: Gradient, _event: simpy.Event | None = None) -> None:
        """Give up a gradient that did not get through, and send its worker the model."""
        if self.past_the_end():
            return
        self.settle(gradient, LOST)
        if self.at_barrier:
            self.leave_barrier_if_quiet()
        else:
            self.make_up_for(gradient)

    def make_up_for(self, lost: Gradient) -> None:
        """Send the model to the worker of a lost gradient, unless a newer one is on its way or comes anyway."""
        comes_anyway = self.at_barrier or (self.sends_to == "everyone" and self.jobs)
        if self.latest[lost.worker] is lost and not comes_anyway:
            self.send(lost.worker)

    def check_that_something_can_happen(self) -> None:
        """Raise an error if there is nothing left but workers that crash and return."""
        waits = any(self.down[w] and w not in self.gone and g.status == LOST for w, g in enumerate(self.latest))
        if not (self.jobs or waits or any(map(self.is_under_way, self.latest))):
            raise stands_still(self.replica, self.version, self.gone)

    # --- links -------------------------------------------------------------------------------------------------------

    def connect(self, cluster: Cluster, network: Network, seed: int, message_bytes: tuple[int, int]) -> None:
        """Lay the links and every worker's way over them."""
        routes = network.routes(self.count)
        links = [(Link(), passage) for passage in cluster.passages(routes)]

        def ways(numbers: list[list[int]], size: int, *, up: bool) -> list[Way]:
            return [
                [
                    Crossing(*links[number], (seed, self.replica, worker), hop, size, network, up=up)
                    for hop, number in enumerate(way)
                ]
                for worker, way in enumerate(numbers)
            ]

        self.ways_up = ways(routes.up, message_bytes[0], up=True)
        self.ways_down = ways(routes.down, message_bytes[1], up=False)

    def travel(
        self,
        gradient: Gradient,
        way: Way,
        last_kind: int,
        deliver: Callable[..., None],
        hop: int = 0,
        _event: simpy.Event | None = None,
    ) -> None:
        """Carry a message over the rest of its way, link by link, then deliver it.

        Here, in `receive`, `arrive` and `lose` the last argument is what SimPy hands to a callback: the event.
        """
        if not way:
            deliver(gradient)
            return
        time, delivered = way[hop].join(self.env.now, gradient.draw)
        if not delivered:
            kind, then = ARRIVE, partial(self.lose, gradient)
        elif hop + 1 == len(way):
            kind, then = last_kind, partial(deliver, gradient)
        else:
            kind, then = HOP, partial(self.travel, gradient, way, last_kind, deliver, hop + 1)
        self.env.at(time, kind, gradient.worker, gradient.draw).callbacks.append(then)

    # --- server ------------------------------------------------------------------------------------------------------

    def send(self, worker: int) -> None:
        """Send the current version to a worker."""
        before = self.latest[worker]
        gradient = Gradient(worker, 0 if before is None else before.draw + 1, self.version, self.env.now)
        self.latest[worker] = gradient
        if self.on_update is not None:
            self.untold[worker].append(gradient)
        if self.network is None:
            self.receive(gradient)
        else:
            self.travel(gradient, self.ways_down[worker], RECEIVE, self.receive)

    def send_to_all(self) -> None:
        """Send the current version to every worker, in order."""
        for worker in range(self.count):
            self.send(worker)

    def arrive(self, gradient: Gradient, _event: simpy.Event | None = None) -> None:
        """Take a gradient from the network: discard it, collect it, or complete an update with it."""
        if self.past_the_end():
            return
        gradient.arrive_time = self.env.now
        gradient.place = next(self.places)
        if self.at_barrier:
            self.settle(gradient, DISCARDED)
            self.leave_barrier_if_quiet()
            return
        update = self.version + len(self.jobs)
        if update - gradient.read_version > self.staleness_limit:
            self.settle(gradient, DISCARDED)
            if self.sends_to != "everyone" and self.latest[gradient.worker] is gradient:
                self.send(gradient.worker)
            return
        self.batch.append(gradient)
        if len(self.batch) < self.batch_size:
            if self.goes_on:
                self.send(gradient.worker)
            return
        batch, self.batch = self.batch, []
        self.jobs.append(batch)
        if self.replies_before:
            self.reply(batch)
        if self.takes_no_time:
            self.apply()
        elif self.server_idle is not None:
            idle, self.server_idle = self.server_idle, None
            idle.succeed()

    def server(self) -> Generator[simpy.Event, Any, None]:
        """Apply the complete batches in order, each after its service time."""
        while True:
            if not self.jobs:
                self.server_idle = wake = self.env.event()
                yield wake
                continue
            yield self.env.at(self.env.now + self.server_service(self.version), APPLY, 0)
            self.apply()

    def apply(self) -> None:
        """Apply the oldest complete batch: the version grows by one. Then reply."""
        if self.past_the_end():
            return
        batch = self.jobs.popleft()
        for gradient in batch:
            gradient.update = self.version
            self.settle(gradient, APPLIED)
        self.version += 1
        request = "go" if self.on_update is None else self.on_update(self.rows(batch))
        if request == "stop":
            self.note("stop")
        self.settled.mark()
        if self.version == self.last_update or request == "stop":
            self.finish()
        elif request == "barrier":
            self.enter_barrier()
        else:
            if not self.replies_before:
                self.reply(batch)
            if self.cancels:
                self.send_to_hopeless()

    def reply(self, batch: list[Gradient]) -> None:
        """Send the model to those whom the policy sends it to."""
        if self.sends_to == "everyone":
            self.send_to_all()
        elif self.sends_to == "last":
            self.send(batch[-1].worker)
        else:
            for gradient in batch:
                self.send(gradient.worker)

    def send_to_hopeless(self) -> None:
        """Send the model to every worker whose gradient under way can no longer be accepted."""
        for worker, gradient in enumerate(self.latest):
            if self.is_under_way(gradient) and self.version - gradient.read_version > self.staleness_limit:
                self.send(worker)

    def is_under_way(self, gradient: Any) -> bool:
        """Say whether the server still waits for this gradient."""
        return math.isnan(gradient.arrive_time) and gradient.status != LOST

    # --- barrier and end ---------------------------------------------------------------------------------------------

    def enter_barrier(self) -> None:
        """Discard what is collected; reply to nobody until every worker's gradient is in."""
        self.at_barrier = True
        for batch in (self.batch, *self.jobs):
            for gradient in batch:
                self.settle(gradient, DISCARDED)
        self.batch = []
        self.jobs.clear()
        self.leave_barrier_if_quiet()

    def leave_barrier_if_quiet(self) -> None:
        """Start every worker from the current version once all wait at the barrier and nothing is under way."""
        if self.at_barrier and not any(self.is_under_way(gradient) for gradient in self.latest):
            self.at_barrier = False
            self.note("barrier")
            self.send_to_all()

    def past_the_end(self) -> bool:
        """Say whether the replica is over, ending it when its time is up."""
        if not self.over and self.env.now > self.last_time:
            self.finish()
        return self.over

    def finish(self) -> None:
        """End the replica with the last update."""
        self.over = True
        self.end.succeed()

    # --- what is recorded --------------------------------------------------------------------------------------------

    def settle(self, gradient: Gradient, status: int) -> None:
        """Write the row of a gradient whose fate is settled now."""
        gradient.status = status
        gradient.apply_time = self.env.now
        if math.isnan(gradient.arrive_time):
            gradient.place = next(self.places)
        self.settled.add(gradient)

    def note(self, kind: str, worker: int = -1) -> None:
        """Note an event."""
        self.settled.events.append((self.env.now, worker, kind))

    def rows(self, batch: list[Gradient]) -> UpdateRows:
        """Return the update just made, as `on_update` sees it."""
        wasted = []
        for mine in self.untold:
            # Only in the order of draws: what became of a gradient after one still on its way waits for that one.
            while mine and mine[0].place <= batch[-1].place:
                gradient = mine.popleft()
                if gradient.status != APPLIED and not math.isnan(gradient.done_time):
                    wasted.append(gradient)
        wasted.sort(key=lambda gradient: gradient.place)
        return UpdateRows(
            self.replica,
            self.version - 1,
            self.env.now,
            *columns(batch),
            oldest_read=min((mine[0].read_version for mine in self.untold if mine), default=self.version),
            wasted=Wasted(*columns(wasted), np.array([g.status == LOST for g in wasted])) if wasted else NOTHING,
        )


def columns(gradients: list[Gradient]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the workers, draws, versions read and blocks of gradients."""
    rows = [(gradient.worker, gradient.draw, gradient.read_version, -1) for gradient in gradients]
    worker, draw, read_version, block = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return worker, draw, read_version, block


#: What most updates tell of.
NOTHING = Wasted(*columns([]), np.empty(0, dtype=np.bool_))


def run_replica(
    scenario: Scenario,
    replica: int,
    *,
    message_bytes: tuple[int, int],
    on_update: OnUpdate | None,
    parts: TraceParts,
    progress: Callable[[int], Any],
) -> None:
    """Run one replica to its end and add its rows to `parts`."""
    progress(ClusterModel(scenario, replica, message_bytes=message_bytes, on_update=on_update, parts=parts).run())
