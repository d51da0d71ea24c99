"""Work that misbehaves on demand, in worker processes, and a test's view of it: who is inside, and let nobody be left.

A file in the place named after a piece of work says what that does: "raise", "exit", "memory", "die", or "hold" (say
who one is, and wait for ever), each perhaps with " once". Nothing here looks at a clock but to give up.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from pathlib import Path
from typing import Any

PATIENCE = 60.0


class Place:
    """A folder of disturbances, as the test sees it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        for name in ("announced", "gate"):
            os.mkfifo(folder / name)
        self._announced = os.open(folder / "announced", os.O_RDWR)
        self._known: dict[int, int] = {}
        self._unread = b""

    def set(self, **what: str) -> None:
        for name, words in what.items():
            (self.folder / name).write_text(words)

    def clear(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink()

    def inside(self) -> list[int]:
        """Return the process that is now held inside a piece of work, and its parent, as soon as there is one."""
        while b"\n" not in self._unread:
            assert select.select([self._announced], [], [], PATIENCE)[0], "nobody came"
            self._unread += os.read(self._announced, 4096)
        line, _, self._unread = self._unread.partition(b"\n")
        pids = [int(word) for word in line.split()]
        self._known[pids[0]] = os.pidfd_open(pids[0])
        return pids

    def ended(self, pid: int) -> bool:
        """Say whether a process that was inside is gone, or goes."""
        return bool(select.select([self._known[pid]], [], [], PATIENCE)[0])

    def close(self) -> None:
        for pidfd in self._known.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        os.close(self._announced)


def disturb(folder: str | Path, name: str) -> None:
    file = Path(folder) / name
    if not file.exists():
        return
    what, _, once = file.read_text().partition(" ")
    if once:
        file.unlink()
    if what == "raise":
        raise ArithmeticError("poisoned")
    if what == "exit":
        raise SystemExit(3)
    if what == "memory":
        exhaust_memory()
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hold":
        with open(Path(folder) / "announced", "w") as announced:
            announced.write(f"{os.getpid()} {os.getppid()}\n")
        hold_at(Path(folder) / "gate")


def exhaust_memory() -> None:
    """Take memory until there is no more: all that this process may have is 64 MiB beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), hard))
    taken = []
    try:
        while True:
            taken.append(bytearray(1 << 20))
    finally:
        taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def hold_at(gate: Path) -> None:
    gate.open().read()


class Disturbed:
    """f(x) = ½x², whose gradient is disturbed in the place that the environment names, by the name of its cell."""

    batched = True
    dimension = 1

    def __init__(self, cell: int = 0):
        self.cell = cell

    def value(self, x: Any) -> Any:
        return 0.5 * (x**2).sum(axis=-1)

    def gradient(self, x: Any) -> Any:
        disturb(os.environ["DISTURBANCES"], f"cell{self.cell}")
        return x


def worker_function() -> Any:
    """Return what executors are tested with: it writes who did a task, after whatever disturbs it."""

    def write(data: dict[str, Any]) -> None:
        disturb(data["folder"], data["name"])
        with open(Path(data["folder"]) / f"{data['name']}.done", "a") as file:
            file.write(f"{os.getpid()}\n")

    return write
