"""Where tasks run: in this process, in worker processes of this machine, or on a Dask cluster.

An executor takes tasks, each a name and plain data for one function, and yields every task once, as it ends, with what
went wrong or None. The function writes its own results: nothing but names and words travels back. One that raises,
hangs or kills its process costs its own task only.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple


class ExecutorError(RuntimeError):
    """Tasks cannot be run at all: the message says why and what to do."""


class Task(NamedTuple):
    """What one call of the function is given; tasks of one `group` share work, so one worker should have them."""

    key: str
    group: str
    data: dict[str, Any]


class Failure(NamedTuple):
    """Why a task has no result: in a few words, and where it was as far as that is known."""

    reason: str
    traceback: str


#: Every task once, as it ends; whoever leaves it early closes it, which ends what still runs.
Outcomes = Generator[tuple[Task, Failure | None], None, None]


def function_named(name: str) -> Callable[[Any], None]:
    """Return what the factory ``package.module:name`` makes: the function that tasks are given to."""
    module, _, factory = name.partition(":")
    made: Callable[[Any], None] = getattr(importlib.import_module(module), factory)()
    return made


def failure_of(error: BaseException) -> Failure:
    """Return an exception as a failure."""
    said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    return Failure(said, "".join(traceback.format_exception(error)))


def here(function: str, tasks: Sequence[Task]) -> Outcomes:
    """Run tasks in this process, one group after another; only what raises can be survived."""
    from threadpoolctl import threadpool_limits

    call = function_named(function)
    with threadpool_limits(limits=1, user_api="blas"):
        for task in sorted(tasks, key=lambda task: task.group):
            failure = None
            try:
                call(task.data)
            except (Exception, SystemExit) as error:
                failure = failure_of(error)
            yield task, failure


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lives(pid: int) -> bool:
    """Return whether a process of this machine still runs; True where that cannot be told."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return True  # not ours to ask, or a system without /proc
