"""The ranks of an MPI job: rank 0 is the server, ranks 1 … M are the workers.

Whatever is waited for is looked for with `improbe` and `test`, with short sleeps in between: MPI's own blocking calls
look without a pause, and with more ranks than cores that takes the cores from those who compute. The longer a wait has
lasted, the longer the sleeps, an eighth of it from 20 microseconds up to 1 millisecond.

Every message is sent without blocking, and whoever sends looks after it until it is gone. So nobody waits for somebody
who waits, and nobody waits for a rank that was killed.
"""

from __future__ import annotations

import functools
import math
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from asyncsim.executors import lives
from asyncsim.scenario import Scenario, ScenarioError
from asyncsim.sources.recorded.messages import Died, Failed, Job, Model, Ready
from asyncsim.sources.recorded.processes import BEGINNING, BadStart, could_not_start, unpack, with_cache
from asyncsim.sources.recorded.replica import Outcome, make_server, serve
from asyncsim.sources.recorded.worker import warm_up, work

#: Seconds of the shortest and the longest sleep between two looks at what others may send at any time.
SHORTEST, LONGEST = 20e-6, 1e-3
#: Seconds of the longest sleep where nothing but the end of the run can come.
LONG = 0.05
#: The share of the time waited so far that the next sleep takes.
SHARE = 1 / 8
#: Seconds between two looks at which ranks live, and those that a dead rank's last message has to arrive in.
GLANCE, LAST_WORDS = 0.05, 0.05

#: What a launcher sets for each rank that it starts: its number, and how many there are.
PLACES = {"PMI_RANK": "PMI_SIZE", "PMIX_RANK": "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE"}
RANK_VARIABLES = tuple(PLACES)


class Farewell(NamedTuple):
    """A worker sends nothing more."""

    worker: int


def place_in_job() -> tuple[int, int]:
    """Return (rank, number of ranks) as the launcher of this process says; (0, 1) where there is none."""
    for rank, size in PLACES.items():
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def run_replica(scenario: Scenario, replica: int, progress: Callable[[int], Any] | None) -> Outcome:
    """Run a replica on the ranks of the MPI job that this process is part of, else on those of a job of its own."""
    try:
        if "mpi4py.MPI" in sys.modules or any(name in os.environ for name in RANK_VARIABLES):
            world = join()
            if world.size > 1:
                return _take_part(world, scenario, replica, progress)
        import mpi4py  # noqa: F401
    except ImportError as error:
        raise ScenarioError(f"backend = 'mpi' needs mpi4py and an MPI: pip install 'asyncsim[mpi]' ({error})") from None
    from asyncsim.sources.recorded.mpiexec import launch

    return launch(scenario, replica, progress)


class World:
    """All ranks of the job, on a communicator of our own."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self.mpi: Any = MPI
        self.communicator: Any = MPI.COMM_WORLD.Dup()
        self.rank, self.size = int(self.communicator.rank), int(self.communicator.size)
        ranks = self.communicator.allgather((os.getpid(), MPI.Get_processor_name()))
        self.pids = [pid for pid, _ in ranks]
        self.machines = sorted({machine for _, machine in ranks})
        self.lost: set[int] = set()  # workers whose process is gone
        self.undone: list[Any] = []  # requests that nobody will answer; their buffers may still be looked at


@functools.cache
def join() -> World:
    """Return the job that this process is part of; all ranks must call it."""
    return World()


def leave_together() -> None:
    """Let the other ranks end now, or, as one of them, wait until rank 0 does so; MPI's own end takes a core each."""
    if not join.cache_info().currsize:
        return  # rank 0 has not come so far
    world = join()
    if world.rank > 0:
        _completed(look_for(lambda: world.communicator.improbe(source=0), longest=LONG).irecv())
    else:
        living = set(range(1, world.size)) - {worker + 1 for worker in world.lost}
        world.undone += [world.communicator.isend(None, dest=rank) for rank in sorted(living)]


def look_for(take: Callable[[], Any], end: float = math.inf, longest: float = LONGEST) -> Any:
    """Return what `take` returns once that is not None; None where it still is at the time `end`."""
    begin = time.monotonic()
    while True:
        found = take()
        now = time.monotonic()
        if found is not None or now >= end:
            return found
        time.sleep(min(max(SHARE * (now - begin), SHORTEST), longest, end - now))


def _completed(request: Any) -> Any:
    """Wait for a request; return what was received."""
    return look_for(lambda: answer if (answer := request.test())[0] else None)[1]


class Ranks:
    """A transport whose workers are MPI ranks.

    `interrupts` says whether models may come while a worker computes; `glance` is called about every 50 ms.
    """

    def __init__(self, world: World, *, interrupts: bool, glance: Callable[[], Any] = lambda: None):
        self.world, self.interrupts, self.glance = world, interrupts, glance
        self.workers = range(world.size - 1)
        self.job: Job
        self.sending: list[tuple[int, Any]] = []  # (worker, request)
        self.incoming: tuple[int, Any] | None = None  # of a message that has come in part
        self.missed: dict[int, float] = {}  # worker: when it was first seen to be gone
        self.next_look = 0.0
        self.inside = math.inf  # since when MPI has been at what should take no time

    def __enter__(self) -> Ranks:
        """Hand the job to every worker, and wait until each is ready."""
        job = pickle.dumps(with_cache(self.job), protocol=5)  # ranks that a user started have the user's script too
        data = self.world.mpi.pickle.dumps((job, self.interrupts))
        waiting = self._living()
        for worker in sorted(waiting):  # one buffer for all
            self.sending.append((worker, self.world.communicator.Isend([data, self.world.mpi.BYTE], dest=worker + 1)))
        end = time.monotonic() + BEGINNING
        while waiting:
            message = self.receive(GLANCE)
            if isinstance(message, Failed):
                raise could_not_start(message.worker, message.traceback)
            if isinstance(message, Died):
                raise could_not_start(message.worker, message.reason)
            if isinstance(message, Ready):
                waiting.discard(message.worker)
            if time.monotonic() > end:
                raise BadStart(f"workers {sorted(waiting)} were not ready after {BEGINNING:g} s")
        for worker in self.world.lost:  # in an earlier replica: this one learns of it, too
            self.missed[worker] = -math.inf
        return self

    def __exit__(self, *error: Any) -> None:
        """Nothing: how the ranks end is up to who started them."""

    def send(self, worker: int, model: Model) -> None:
        """Send a model."""
        self._isend(worker, model)

    def receive(self, timeout: float) -> Any:
        """Return the next message, a `Died`, or None."""
        self._look()
        return look_for(self._take, time.monotonic() + timeout)

    def restart(self, worker: int) -> None:
        """Never called: a rank cannot be started again, and no scenario may ask for it."""
        raise NotImplementedError

    def dismiss(self, last_word: Any) -> None:
        """Tell every worker that the run is over, hear what is still on its way, and send all the same last word."""
        self.glance = lambda: None
        waiting = self._living()
        for worker in sorted(waiting):
            self._isend(worker, None)
        while waiting:
            message = self.receive(GLANCE)
            if isinstance(message, (Farewell, Died)):
                waiting.discard(message.worker)
        for worker in sorted(self._living()):
            self._isend(worker, last_word)
        while self.sending:
            self.receive(LONGEST)

    def _living(self) -> set[int]:
        return set(self.workers) - self.world.lost

    def _isend(self, worker: int, what: Any) -> None:
        if worker not in self.world.lost:
            self.inside = time.monotonic()
            self.sending.append((worker, self.world.communicator.isend(what, dest=worker + 1)))
            self.inside = math.inf

    def caught(self, patience: float) -> int | None:
        """Return a worker whose death MPI does not come back from, to be asked by another thread; None if it does.

        Once in a hundred deaths or more seldom, sending to a rank that was killed a moment ago never returns, although
        it is not to block: MPICH goes on opening a connection to a process that is gone.
        """
        if time.monotonic() - self.inside < patience:
            return None
        return next((worker for worker in self.workers if not lives(self.world.pids[worker + 1])), None)

    def _look(self) -> None:
        """Now and then, see who lives, and glance at what else there is."""
        now = time.monotonic()
        if now >= self.next_look:
            for worker in self._living() - self.missed.keys():
                if not lives(self.world.pids[worker + 1]):
                    self.missed[worker] = now
            self.glance()
            self.next_look = time.monotonic() + GLANCE

    def _unsent(self, worker: int, request: Any) -> bool:
        """Return whether a message has yet to be looked after."""
        if worker in self.world.lost:
            self.world.undone.append(request)
            return False
        try:
            return not request.test()[0]
        except self.world.mpi.Exception:
            return False  # its receiver is gone, as will be seen

    def _take(self) -> Any:
        """Return a message that is there, or the news of a death once nothing more can come from there."""
        self.sending = [sent for sent in self.sending if self._unsent(*sent)]
        try:
            while True:
                if self.incoming is None:
                    status = self.world.mpi.Status()
                    message = self.world.communicator.improbe(status=status)
                    if message is None:
                        break
                    self.incoming = status.source - 1, message.irecv()
                worker, request = self.incoming
                done, what = request.test()
                if not done and worker not in self.world.lost:
                    break
                self.incoming = None
                if not done:
                    self.world.undone.append(request)
                elif worker not in self.world.lost:
                    return what
        except self.world.mpi.Exception:
            if self.incoming is None or lives(self.world.pids[self.incoming[0] + 1]):
                raise
            self.incoming = None  # the rest of it died with its sender
        return self._news_of_death()

    def _news_of_death(self) -> Died | None:
        now = time.monotonic()
        for worker, since in self.missed.items():
            if now - since > LAST_WORDS:
                del self.missed[worker]
                self.world.lost.add(worker)
                return Died(worker, f"process {self.world.pids[worker + 1]} is gone")
        return None


class Channel:
    """A worker's channel."""

    def __init__(self, world: World, *, interrupts: bool):
        self.communicator, self.longest = world.communicator, LONGEST if interrupts else LONG
        self.over = False

    def receive(self, timeout: float | None = None) -> tuple[float, Model | None] | None:
        """Return (time of arrival, model), or None if nothing comes in time."""
        if timeout is None:
            return look_for(self._take)
        return look_for(self._take, time.monotonic() + timeout, self.longest)

    def _take(self) -> tuple[float, Model | None] | None:
        message = self.communicator.improbe(source=0)
        if message is None:
            return None
        model = _completed(message.irecv())
        self.over = model is None
        return time.monotonic(), model

    def send(self, message: Any) -> None:
        """Send a message to the server."""
        _completed(self.communicator.isend(message, dest=0))


def be_worker(world: World) -> Any:
    """Work on the job that rank 0 hands out until the run is over; return rank 0's last word."""
    worker = world.rank - 1
    first = _completed(look_for(lambda: world.communicator.improbe(source=0)).irecv())
    data, interrupts = first or (b"", False)
    channel = Channel(world, interrupts=interrupts)
    channel.over = first is None
    try:
        if not channel.over:
            job = unpack(data)
            warm_up(job)
            channel.send(Ready(worker, os.getpid()))
            work(channel, job, worker)
    except Exception:
        channel.send(Failed(worker, -1, traceback.format_exc()))
    while not channel.over:
        channel.receive()
    channel.send(Farewell(worker))
    found = channel.receive()
    assert found is not None
    return found[1]


def _take_part(world: World, scenario: Scenario, replica: int, progress: Any) -> Outcome:
    """Serve or work as one rank of a user's own MPI job; every rank returns the same outcome."""
    if world.size != scenario.workers + 1:
        raise ScenarioError(
            f"backend = 'mpi': {scenario.workers} workers and a server are {scenario.workers + 1} ranks, "
            f"but this MPI job has {world.size}"
        )
    if len(world.machines) > 1:
        raise ScenarioError(
            f"backend = 'mpi': the times of a trace are those of one machine's clock, but the ranks are on "
            f"{len(world.machines)} machines: {', '.join(world.machines)}"
        )
    if world.rank > 0:
        outcome: Outcome | str = be_worker(world)
        if isinstance(outcome, str):
            raise RuntimeError(f"rank 0 failed:\n{outcome}")
        return outcome
    ranks = Ranks(world, interrupts=may_interrupt(scenario))
    outcome = ""
    try:
        server = make_server(scenario, replica, progress)
        ranks.job = server.job
        outcome = serve(server, ranks)
    except BaseException:
        outcome = traceback.format_exc()
        raise
    finally:
        ranks.dismiss(outcome)
    return outcome


def may_interrupt(scenario: Scenario) -> bool:
    """Return whether a model may come while a worker computes."""
    return bool(scenario.policy.cancels or scenario.policy.sends_to == "everyone")
