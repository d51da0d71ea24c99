"""An MPI job of this machine for one replica: started with mpiexec, listened to, and ended whatever happens.

Its ranks are `asyncsim.sources.recorded.mpi_rank`. Rank 0 reports what has happened since its last report, so that the
trace until then is there even where rank 0 itself is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyncsim.checksums import checksum
from asyncsim.scenario import Scenario, ScenarioError
from asyncsim.sources.recorded import interrupts
from asyncsim.sources.recorded.log import Log
from asyncsim.sources.recorded.mpi import RANK_VARIABLES
from asyncsim.sources.recorded.processes import BEGINNING, FAREWELL, BadStart, environment, for_others
from asyncsim.sources.recorded.replica import Outcome, make_job, outcome_of
from asyncsim.sources.recorded.server import WorkerLost

#: Ranks talk through sockets, one for each two of them. MPICH's shared memory is one queue for all senders, and a rank
#: that is killed while it writes there stops every other. Whoever sets these variables otherwise gets what they say.
SOCKETS = {"MPIR_CVAR_CH4_NETMOD": "ofi", "MPIR_CVAR_NOLOCAL": "1", "FI_PROVIDER": "tcp"}
#: This machine and no other, also within a batch system's allocation and without a network.
THIS_MACHINE = {"HYDRA_RMK": "user", "HYDRA_LAUNCHER": "fork", "HYDRA_USE_LOCALHOST": "1"}
#: Where MPI keeps its shared segments, and what it calls them.
SEGMENTS, SEGMENT = Path("/dev/shm"), re.compile(r"/dev/shm/((?:mpich_shm|ucx_shm)\w*)")


class Report(NamedTuple):
    """What has happened since the last report, with the number of updates, and the model now."""

    begin: float
    rows: list[tuple[Any, ...]]
    events: list[tuple[float, int, str]]
    checksums: list[int]
    updates: int
    x: np.ndarray


class Finished(NamedTuple):
    """The server has come to its end: why early, whether interrupted, or the exception that ended it."""

    ended: str | None = None
    interrupted: bool = False
    error: BaseException | None = None


def launch(scenario: Scenario, replica: int, progress: Callable[[int], Any] | None) -> Outcome:
    """Run a replica on ranks started for it."""
    job = make_job(scenario, replica)
    known = dict(vars(scenario.problem)) if hasattr(scenario.problem, "__dict__") else {}
    task = for_others((scenario, replica, known))
    parent = Parent(task, scenario.workers + 1, replica, progress)
    ended, interrupted = outcome_of(parent.run)
    finished = parent.finished or Finished(ended, interrupted)
    if finished.error is not None:
        raise finished.error
    x = parent.x
    if x is None:  # it did not come to begin
        published = job.method.init(job.problem, job.problem.initial(job.seed, replica), job.workers)[0].x
        parent.log.checksums.append(checksum(published))
        x = job.method.model(job.problem, published)
    return Outcome(parent.log, x, finished.ended, finished.interrupted)


class Parent:
    """The process that starts an MPI job and listens to it."""

    def __init__(self, task: bytes, ranks: int, replica: int, progress: Callable[[int], Any] | None):
        self.task, self.ranks, self.progress = task, ranks, progress
        self.log = Log(replica)
        self.x: np.ndarray | None = None
        self.finished: Finished | None = None
        self.server: Connection | None = None
        self.watched = False  # whether the server itself looks after the other ranks by now
        self.speaking: dict[Connection, int] = {}  # a rank's connection: its process
        self.silent: list[Connection] = []  # the guards' connections

    def run(self) -> None:
        """Start the job, and listen until it is over."""
        segments = _segments()
        with tempfile.TemporaryDirectory(prefix="asyncsim-") as folder, socket.socket(socket.AF_UNIX) as self.listener:
            address = os.path.join(folder, "parent")
            self.listener.bind(address)
            self.listener.listen(2 * self.ranks)
            self.mpiexec = self._start(address)
            try:
                self._listen()
            finally:
                self._end()
                _remove_segments(_segments() - segments)

    def _start(self, address: str) -> subprocess.Popen[bytes]:
        mpiexec = _mpiexec()
        version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True).stdout
        option = "-disable-auto-cleanup" if "HYDRA" in version else "--oversubscribe"
        program = [sys.executable, "-m", "asyncsim.sources.recorded.mpi_rank", address, str(self.ranks)]
        given = {name: value for name, value in environment().items() if not _of_another_job(name)}
        loopback = {"FI_TCP_IFACE": "lo"} if sys.platform == "linux" else {}
        return subprocess.Popen(
            [mpiexec, option, "-n", str(self.ranks), *program],
            stdin=subprocess.DEVNULL,
            env={**SOCKETS, **loopback, **given, **THIS_MACHINE},
            start_new_session=True,  # Ctrl-C is ours to handle
        )

    def _listen(self) -> None:
        """Take in what the ranks say, until the end; who interrupts gets what there is."""
        start = time.monotonic()
        try:
            while self.finished is None:
                interrupts.check()
                self._hear_all()
                if self.log.begin == 0.0 and self.finished is None:
                    if self.mpiexec.poll() is not None:
                        raise BadStart(f"mpiexec ended with exit code {self.mpiexec.returncode} before the run began")
                    if time.monotonic() > start + BEGINNING:
                        raise BadStart(f"the ranks were not ready after {BEGINNING:g} s")
        except interrupts.Ended as signal:
            if self.server is not None:
                with contextlib.suppress(OSError):
                    self.server.send(signal.args[0])
                end = time.monotonic() + FAREWELL
                while self.finished is None and time.monotonic() < end:
                    self._hear_all()
            raise

    def _hear_all(self) -> None:
        """Hear everybody who has something to say."""
        for heard in wait([self.listener, *self.speaking, *self.silent], interrupts.LOOK_EVERY):
            if heard is self.listener:
                self.silent.append(Connection(self.listener.accept()[0].detach()))
            elif self.finished is None:
                assert isinstance(heard, Connection)
                self._hear(heard)

    def _hear(self, connection: Connection) -> None:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            self._gone(connection)
            return
        if isinstance(message, int):  # a rank has come up
            self.silent.remove(connection)
            self.speaking[connection] = message
        elif message == "server":
            self.server = connection
            with contextlib.suppress(OSError):
                connection.send_bytes(self.task)
        elif message == "watching":
            self.watched = True
        elif isinstance(message, Report):
            self.log.begin, self.x = message.begin, message.x
            self.log.rows += message.rows
            self.log.events += message.events
            self.log.checksums += message.checksums
            if self.progress is not None and message.updates:
                self.progress(message.updates)
        else:
            self.finished = message

    def _gone(self, connection: Connection) -> None:
        """Nobody is left at the other end: a guard that was killed, whose rank ends with it, or a rank."""
        connection.close()
        if connection in self.silent:
            self.silent.remove(connection)
            return
        pid = self.speaking.pop(connection)
        if connection is self.server and self.watched:
            raise WorkerLost(f"the server, rank 0, died (process {pid}); what it had reported until then is kept")
        while self.server in self.speaking and self.server.poll():  # it may have said so before this one began
            self._hear(self.server)
        if not self.watched:
            raise BadStart(
                f"a rank, process {pid}, ended before the run began; run.on_worker_death is about ranks that have "
                "started, and MPI cannot begin without one of them"
            )

    def _end(self) -> None:
        """Let go of the guards, which end their ranks, whereupon mpiexec ends."""
        self.listener.close()
        for connection in [*self.speaking, *self.silent]:
            connection.close()
        try:
            self.mpiexec.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self.mpiexec.kill()
            self.mpiexec.wait()


def _mpiexec() -> str:
    """Return the path of mpiexec, that beside this Python first."""
    found = shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")
    if found is None:
        raise ScenarioError("backend = 'mpi' needs mpiexec, which is not there: pip install 'asyncsim[mpi]'")
    return found


def _of_another_job(name: str) -> bool:
    """Return whether a variable tells a rank its place in a job, which is not the one that we start."""
    return name in RANK_VARIABLES or name.startswith(("PMI_", "PMIX_", "OMPI_COMM_", "HYDI_", "MPI_LOCAL"))


def _segments() -> set[str]:
    """Return the shared segments of MPI that are ours by owner, whichever run made them."""
    found = set()
    for path in SEGMENTS.glob("*") if SEGMENTS.is_dir() else ():
        with contextlib.suppress(OSError):
            if SEGMENT.fullmatch(str(path)) and path.stat().st_uid == os.getuid():
                found.add(path.name)
    return found


def _remove_segments(names: set[str]) -> None:
    """Remove those segments that no process has in its memory: a run beside ours may have made some of them."""
    for _ in range(2 * bool(names)):  # somebody might just now be between making one and having it
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with contextlib.suppress(OSError):
                names = names - set(SEGMENT.findall(maps.read_text()))
        time.sleep(interrupts.LOOK_EVERY)
    for name in names:
        (SEGMENTS / name).unlink(missing_ok=True)


def unlink_segments() -> None:
    """Take the names from the segments that this process has in its memory; those who have them keep them."""
    with contextlib.suppress(OSError):
        for name in set(SEGMENT.findall(Path("/proc/self/maps").read_text())):
            (SEGMENTS / name).unlink(missing_ok=True)
