"""A worker process: it reads tasks from its standard input, one JSON line each, and answers each with a line.

A line is [the task's data, whether to note where the task is as long as it runs].

Started by `asyncsim.executors.local` as ``python -m asyncsim.executors.worker FUNCTION PARENT``. It ends when its input
ends, also in the midst of a task, so that no worker outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
from queue import SimpleQueue
from typing import Any, BinaryIO

from asyncsim.allocator import keep_freed_memory
from asyncsim.executors import failure_of, function_named

#: Linux: the signal that the kernel sends when the parent has died.
PR_SET_PDEATHSIG = 1

#: Seconds between two notes of where a task is that has ended a worker before.
NOTED_EVERY = 0.5


def main() -> None:
    """Answer tasks until the input ends."""
    name, parent = sys.argv[1], int(sys.argv[2])
    die_with(parent)
    keep_freed_memory()
    faulthandler.enable()  # a crash, and the signal that ends a hanging task, leave a traceback
    inbox: SimpleQueue[bytes] = SimpleQueue()
    tasks, answers = _own_channels()
    threading.Thread(target=_listen, args=(tasks, inbox), daemon=True).start()
    function = function_named(name)
    _answer(answers, {"ready": True})
    while True:
        failure = None
        data, noted = json.loads(inbox.get())
        if noted:  # whom the kernel ends can say no last words, so they are said in advance
            faulthandler.dump_traceback_later(NOTED_EVERY, repeat=True)
        try:
            function(data)
        except BaseException as error:
            failure = failure_of(error)
        faulthandler.cancel_dump_traceback_later()
        _answer(answers, {"failure": failure})


def die_with(parent: int) -> None:
    """End with the parent, even where the thread that listens is never let in; be the first to go where memory ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")
    with contextlib.suppress(ImportError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _own_channels() -> tuple[BinaryIO, BinaryIO]:
    """Keep standard input and output for ourselves: what a user's code prints goes to the log, and it reads nothing."""
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return tasks, answers


def _listen(tasks: BinaryIO, inbox: SimpleQueue[bytes]) -> None:
    for line in tasks:
        inbox.put(line)
    os._exit(0)


def _answer(answers: BinaryIO, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
