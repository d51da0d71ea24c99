"""A rank of an MPI job that `asyncsim.sources.recorded.mpiexec` starts with

    mpiexec -n RANKS python -m asyncsim.sources.recorded.mpi_rank ADDRESS RANKS

ADDRESS is where the parent listens. mpiexec ends a whole job when one rank dies. So what it starts are guards, and each
starts its rank as a child in a session of its own. A guard waits until the parent lets go of it, or is gone, and ends
its rank then; so nothing is left running even where the parent was killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, wait
from typing import Any

from asyncsim.allocator import keep_freed_memory
from asyncsim.executors.worker import die_with
from asyncsim.scenario import ScenarioError
from asyncsim.sources.recorded import interrupts
from asyncsim.sources.recorded.mpi import Ranks, World, be_worker, may_interrupt
from asyncsim.sources.recorded.mpiexec import Finished, Report, unlink_segments
from asyncsim.sources.recorded.replica import make_server, serve

#: Seconds between two reports, and how many times longer than a report took.
REPORT_EVERY, REPORT_SHARE = 0.1, 50
#: Seconds that MPI may take over a message to a rank that is gone.
PATIENCE = 0.8


def main() -> None:
    """Guard a rank, or be it."""
    address, ranks = sys.argv[1], int(sys.argv[2])
    for ignored in (signal.SIGINT, signal.SIGUSR1):  # the parent's to handle; mpiexec's news of a rank's end
        signal.signal(ignored, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        lifeline = Client(address)
        breath, breathing = os.pipe()
        guard = os.getpid()
        rank = os.fork()
        if rank:
            os.close(breathing)
            _guard(rank, lifeline, breath)
        else:
            os.setsid()
            die_with(guard)
            lifeline.close()
            keep_freed_memory()
            _be_rank(address, ranks)
    sys.stdout.flush()
    os._exit(0)  # MPI's own end waits for every rank, also for those that are gone


def _guard(rank: int, lifeline: Connection, breath: int) -> None:
    """Wait until the parent lets go; a rank that has ended by then is laid to rest."""
    if breath not in wait([lifeline, breath]):
        os.kill(rank, signal.SIGKILL)
    os.waitpid(rank, 0)
    wait([lifeline])


def _be_rank(address: str, ranks: int) -> None:
    faulthandler.enable()
    connection = Client(address)
    connection.send(os.getpid())
    try:
        world = World()
        if world.size != ranks:
            raise ScenarioError(f"mpiexec has started {ranks} ranks, but mpi4py, of another MPI, sees {world.size}")
        unlink_segments()  # every rank has them by now
        if world.rank == 0:
            _serve(connection, world)
        else:
            be_worker(world)
    except Exception as error:
        said = traceback.format_exc()
        error.add_note(said)
        connection.send(Finished(error=error if _can_travel(error) else RuntimeError(said)))


def _serve(connection: Connection, world: World) -> None:
    connection.send("server")
    scenario, replica, known = pickle.loads(connection.recv_bytes())
    if known:
        vars(scenario.problem).update(known)
    server = make_server(scenario, replica, None)
    reporter = Reporter(connection, server)
    ranks = Ranks(world, interrupts=may_interrupt(scenario), glance=reporter)
    ranks.job = server.job
    threading.Thread(target=watch, args=(ranks, reporter, lambda: os._exit(0)), daemon=True).start()
    connection.send("watching")
    outcome = serve(server, ranks)
    reporter.report()
    connection.send(Finished(outcome.ended, outcome.interrupted))


def watch(ranks: Ranks, reporter: Reporter, leave: Callable[[], Any]) -> None:
    """End the run where MPI does not come back from the death of a rank: report what there is, and leave.

    The thread that is caught in MPI holds nothing of ours: an update is in the log before its replies are sent.
    """
    worker = None
    while worker is None:
        time.sleep(PATIENCE / 8)
        worker = ranks.caught(PATIENCE)
    reporter.report()
    said = f"worker {worker} died, and MPI does not come back from sending to it; the run so far is kept"
    reporter.connection.send(Finished(ended=said))
    leave()


def _can_travel(error: Exception) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))
    except Exception:
        return False


class Reporter:
    """Rank 0's way to the parent: reports now and then, and an ear for its wish to end."""

    def __init__(self, connection: Connection, server: Any):
        self.connection, self.server = connection, server
        self.rows = self.events = self.checksums = 0
        self.next_report = 0.0

    def __call__(self) -> None:
        """Report, if it is time to; raise `Ended` where the parent was asked to end."""
        if self.connection.poll():
            raise interrupts.Ended(self.connection.recv())
        now = time.monotonic()
        if now >= self.next_report and self.server.log.begin > 0.0:
            self.report()
            self.next_report = now + max(REPORT_EVERY, REPORT_SHARE * (time.monotonic() - now))

    def report(self) -> None:
        """Send what has happened since the last report."""
        log = self.server.log
        new = log.rows[self.rows :], log.events[self.events :], log.checksums[self.checksums :]
        updates = len(log.checksums) - max(self.checksums, 1)  # the first checksum is that of version 0
        self.rows, self.events, self.checksums = len(log.rows), len(log.events), len(log.checksums)
        self.connection.send(Report(log.begin, *new, updates, self.server.model))


if __name__ == "__main__":
    main()
