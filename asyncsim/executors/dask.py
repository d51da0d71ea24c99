"""Tasks on a Dask cluster, wherever its workers are.

Each task runs in a worker process beside the Dask worker, which `asyncsim.executors.local` starts, watches and ends
there: a task that hangs, or exhausts the memory, is ended without harm to the Dask worker and the others' tasks. Dask
itself sends tasks out, and sends them out again where a Dask worker or its machine is lost.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from asyncsim.executors import ExecutorError, Failure, Outcomes, Task
from asyncsim.executors.local import local

#: Batches that each thread of the cluster gets if all take equally long: few, as each starts a process, and enough that
#: all threads end at about the same time.
BATCHES_PER_THREAD = 4

#: Run by each Dask worker that we start: the terminal's Ctrl-C is for us, and we end the workers.
IGNORE_INTERRUPT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"

#: Threads that a cluster is taken to have later, where it has none yet.
THREADS_TO_COME = 64


def dask(
    function: str, tasks: Sequence[Task], *, jobs: int, timeout: float | None = None, scheduler: str | None = None
) -> Outcomes:
    """Run tasks on the cluster of this scheduler, or on one of `jobs` workers made here; yield each as it ends.

    Tasks go out in batches, those of one group together. A batch whose Dask workers die again and again is taken apart,
    and what is then lost in the same way has failed.
    """
    from distributed import Client, LocalCluster, as_completed
    from distributed.scheduler import KilledWorker

    with contextlib.ExitStack() as stack:
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,  # workers grumble as it is closed; what goes wrong with a task we say
                preload=[IGNORE_INTERRUPT],
            )
            scheduler = stack.enter_context(cluster).scheduler_address
        client = stack.enter_context(Client(scheduler, set_as_default=False))
        threads = sum(client.nthreads().values()) or THREADS_TO_COME
        sent: dict[str, list[Task]] = {}

        def send(batch: list[Task]) -> Any:
            future = client.submit(run_batch, function, batch, timeout, pure=False)
            sent[future.key] = batch
            return future

        futures = as_completed(
            [send(batch) for batch in batches(tasks, BATCHES_PER_THREAD * threads)], loop=client.loop
        )
        stack.callback(lambda: client.cancel(list(futures.futures)))
        for future in futures:
            batch = sent.pop(future.key)
            error = future.exception()
            if isinstance(error, KilledWorker):
                if len(batch) > 1:
                    for task in batch:
                        futures.add(send([task]))
                else:
                    yield batch[0], Failure("its Dask workers died again and again", str(error))
            elif error is not None:
                said = f"a Dask worker could not run cells: {type(error).__name__}: {error}"
                raise ExecutorError(f"{said} (every worker needs the same asyncsim)") from error
            else:
                failures = dict(future.result())
                for task in batch:
                    yield task, failures[task.key]


def batches(tasks: Sequence[Task], wanted: int) -> list[list[Task]]:
    """Cut the tasks, one group after another, into as many batches as wanted; a group is cut where two batches meet."""
    ordered = sorted(tasks, key=lambda task: task.group)
    wanted = min(wanted, len(tasks))
    return [ordered[i * len(tasks) // wanted : (i + 1) * len(tasks) // wanted] for i in range(wanted)]


def run_batch(function: str, batch: list[Task], timeout: float | None) -> list[tuple[str, Failure | None]]:
    """Run a batch in one worker process beside the Dask worker that this is called in."""
    return [(task.key, failure) for task, failure in local(function, batch, jobs=1, timeout=timeout)]
