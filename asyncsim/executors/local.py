"""Worker processes of this machine: each has one task in flight, and one that dies is replaced.

Workers are plain subprocesses: a script that starts them needs no ``__main__`` guard, and a Dask worker, which
`multiprocessing` allows no children, can start them too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing.connection import wait

from asyncsim.executors import ExecutorError, Failure, Outcomes, Task

#: How often a task is tried again when its worker died: it may have been an accident.
TRIES_AGAIN = 3

#: Workers that die one after another before they have started, until we give up.
FAILED_STARTS = 5

#: Seconds that a hanging worker is given to write down where it hangs.
LAST_WORDS = 5.0

#: Bytes of what a worker printed that are kept with a failure.
KEPT_OF_LOG = 8000

#: What begins each note of where a task is (from `faulthandler.dump_traceback_later`).
NOTE = re.compile(r"^Timeout \(.*\)!\n", re.MULTILINE)

#: One thread for every library that would start one for each core.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


def local(function: str, tasks: Sequence[Task], *, jobs: int, timeout: float | None = None) -> Outcomes:
    """Run tasks in up to `jobs` worker processes; yield each as it ends.

    A task whose worker dies is tried again, three times; one that raises, or takes longer than `timeout` seconds,
    would do so again. However the caller leaves the loop, all workers are ended.
    """
    waiting, deaths, failed_starts = _Waiting(tasks), Counter[str](), 0
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.task for worker in pool):
            while len(pool) < min(jobs, len(waiting) + sum(worker.task is not None for worker in pool)):
                pool.append(_Worker(function))
            for worker in pool:
                if worker.ready and worker.task is None and waiting:
                    given = waiting.take(worker.group)
                    worker.give(given, timeout, noted=given.key in deaths)
            for worker in _stirring(pool):
                if worker.overdue():
                    task = worker.task
                    pool.remove(worker)
                    words = worker.abort()
                    if task is not None:
                        yield task, Failure(f"took longer than {timeout:g} s", words)
                    continue
                answer = worker.answer()
                if answer is None:  # it is dead
                    pool.remove(worker)
                    task, failure = worker.task, Failure(*worker.end())
                    failed_starts += not worker.ready
                    if failed_starts >= FAILED_STARTS:
                        said = f"workers die before they have started ({failure.reason}):\n{failure.traceback}"
                        raise ExecutorError(said)
                    if task is None:
                        continue
                    deaths[task.key] += 1
                    if deaths[task.key] <= TRIES_AGAIN:
                        waiting.put_back(task)
                    else:
                        many = f"its worker died {deaths[task.key]} times; at last it {failure.reason}"
                        yield task, failure._replace(reason=many)
                elif "ready" in answer:
                    worker.ready, failed_starts = True, 0
                elif "failure" in answer:
                    task, worker.task = worker.task, None
                    assert task is not None
                    told = answer["failure"]
                    yield task, Failure(*told) if told else None
    finally:
        for worker in pool:
            worker.kill()
        for worker in pool:
            worker.end()


class _Waiting:
    """The tasks that no worker has yet, by groups."""

    def __init__(self, tasks: Sequence[Task]):
        self._groups: dict[str, deque[Task]] = {}
        for task in tasks:
            self._groups.setdefault(task.group, deque()).append(task)
        self._untouched = deque(self._groups)

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def take(self, group: str) -> Task:
        """Return a task for a worker that had one of this group: of the same group, else of one that nobody has begun.

        Where every group has been begun, the one with most tasks left is split: the work its tasks share is done
        once more, by a worker that would do nothing else.
        """
        if not self._groups.get(group):
            most = max(self._groups, key=lambda group: len(self._groups[group]))
            group = self._untouched.popleft() if self._untouched else most
        return self._groups[group].popleft()

    def put_back(self, task: Task) -> None:
        """Take a task again that was not done."""
        self._groups[task.group].appendleft(task)


class _Worker:
    """One worker process: `ready` once it has started, `task` is what it is at, `group` that of its last task."""

    def __init__(self, function: str):
        self.log = tempfile.TemporaryFile("a+b")  # noqa: SIM115
        self.task: Task | None = None
        self.ready, self.group = False, ""
        self._deadline = float("inf")
        self._received = b""
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "asyncsim.executors.worker", function, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # the terminal's Ctrl-C is for us; we end the workers
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._tasks, self._answers = self.process.stdin, self.process.stdout
        self.answers = self._answers.fileno()

    def give(self, task: Task, timeout: float | None, *, noted: bool) -> None:
        """Send a task; a worker that is dead says so when it is asked for its answer.

        Where the task is can be `noted` all the time, so that it is known even if the worker is killed.
        """
        self.task, self.group = task, task.group
        self.log.truncate(0)
        self._deadline = float("inf") if timeout is None else time.monotonic() + timeout
        with contextlib.suppress(BrokenPipeError):
            self._tasks.write(json.dumps([task.data, noted]).encode() + b"\n")
            self._tasks.flush()

    def remaining(self) -> float:
        """Return the seconds that the task still may take."""
        return self._deadline - time.monotonic() if self.task else float("inf")

    def overdue(self) -> bool:
        """Say whether the task has taken too long, and no answer has come."""
        return self.remaining() <= 0 and not wait([self.answers], 0)

    def answer(self) -> dict[str, list[str] | None] | None:
        """Return what the worker says, empty as long as that is half a line; None where it has died."""
        some = os.read(self.answers, 1 << 16)
        if not some:
            return None
        self._received += some
        if not self._received.endswith(b"\n"):
            return {}
        line, self._received = self._received, b""
        said: dict[str, list[str] | None] = json.loads(line)
        return said

    def abort(self) -> str:
        """End a worker that hangs; return where it hung."""
        with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(LAST_WORDS)
        return self.end()[1]

    def kill(self) -> None:
        """Begin the end of a worker."""
        self.process.kill()

    def end(self) -> tuple[str, str]:
        """End a worker, wait until it is gone; return how it ended and the last of what it printed."""
        self.process.kill()
        code = self.process.wait()
        size = os.fstat(self.log.fileno()).st_size
        log = os.pread(self.log.fileno(), KEPT_OF_LOG, max(0, size - KEPT_OF_LOG)).decode(errors="replace")
        printed = NOTE.split(log)[-1]  # of the notes where it was, the last
        for file in (self._tasks, self._answers, self.log):
            with contextlib.suppress(BrokenPipeError):
                file.close()
        if code >= 0:
            return f"ended by itself with exit code {code}", printed
        hint = " (perhaps the machine's memory was exhausted)" if -code == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{hint}", printed


def _stirring(pool: Sequence[_Worker]) -> list[_Worker]:
    """Wait until a worker says something, dies, or has taken too long; return those workers."""
    patience = max(0.0, min(worker.remaining() for worker in pool))
    stirring = wait([worker.answers for worker in pool], None if patience == float("inf") else patience)
    return [worker for worker in pool if worker.answers in stirring or worker.remaining() <= 0]
