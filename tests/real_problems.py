"""Problems of a user's own for real runs: some fail, some kill the process that they run in."""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from asyncsim.problems import Quadratic, Softmax
from asyncsim.sources.recorded.memory import OVER, ROWS, RUNNING, UNFINISHED, UPDATE, Memory

#: Seconds after which nobody is waited for any more.
PATIENCE = 60.0


class Bowl:
    """f(x) = ‖x‖²/2 from all ones; `seconds` is what a gradient takes at least."""

    def __init__(self, dimension: int = 4, seconds: float = 0.0):
        self.dimension, self.seconds = dimension, seconds

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return all ones."""
        return np.ones((*np.shape(replica), self.dimension))

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x)."""
        return np.asarray(0.5 * (x**2).sum(axis=-1))

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return x."""
        if self.seconds:
            time.sleep(self.seconds)
        return x


class Fetching(Bowl):
    """A gradient is minus the number of pages that its arrays have taken from the kernel; so the model counts them.

    They are three: glibc keeps twice the largest array that it has ever seen freed.
    """

    ARRAYS, LENGTH = 3, 60_000

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return 0."""
        return np.zeros((*np.shape(replica), self.dimension))

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return minus the number of pages, in each coordinate."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        arrays = [np.ones(self.LENGTH) for _ in range(self.ARRAYS)]
        del arrays
        return np.full(self.dimension, float(before - resource.getrusage(resource.RUSAGE_SELF).ru_minflt))


class At(Bowl):
    """A bowl where something happens when worker `worker`, or anyone, computes its draw `draw`.

    With a folder `place`, the others have only `lead` draws more until that worker has come there, or until it is
    "back" with a later draw, or its process is "gone" and has been missed: so nothing depends on who is how fast.
    """

    def __init__(
        self, worker: int | None, draw: int, *, place: Any = "", until: str = "there", lead: int = 20, **settings: Any
    ):
        super().__init__(**settings)
        self.worker, self.draw, self.place, self.until, self.lead = worker, draw, str(place), until, lead

    def stochastic_gradient(self, x: np.ndarray, row: Any) -> np.ndarray:
        """Return x, where nothing happens."""
        if row.update < 0:  # not in a replay
            self.in_due_time(row)
        return self.gradient(x)

    def in_due_time(self, row: Any) -> None:
        """Let it happen where it is due, and wait for the others."""
        mine = self.worker in (None, row.worker)
        later = row.draw - self.draw
        if mine and later == 0:
            if self.place:
                self.note("there", str(os.getpid()))
            self.happens()
        if mine and later > 0 and self.place:
            self.note("back")
        if not mine and later > self.lead and self.place:
            self.note("ahead")
            waited(self.may_go_on)

    def note(self, what: str, text: str = "") -> None:
        """Leave word for the others."""
        path = Path(self.place, what)
        if not path.exists():
            new = path.with_name(f"{what}-{os.getpid()}-{threading.get_ident()}")
            new.write_text(text)
            new.replace(path)

    def noted(self, what: str) -> bool:
        """Say whether somebody has left word."""
        return Path(self.place, what).exists()

    def may_go_on(self) -> bool:
        """Say whether the others need not wait any more."""
        if self.until == "gone" and self.noted("there"):
            return not exists(int(Path(self.place, "there").read_text()))
        return self.noted(self.until)

    def happens(self) -> None:
        """Do it."""
        raise NotImplementedError


def waited(condition: Callable[[], bool]) -> bool:
    """Wait until something comes true, but not for ever; say whether it has."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def exists(process: int) -> bool:
    """Say whether a process is there, be it one that its parent has not missed yet."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


class Late(At):
    """One draw takes until another worker is `lead` draws ahead, while the others wait for it there."""

    def __init__(self, worker: int = 1, draw: int = 5, **settings: Any):
        super().__init__(worker, draw, until="back", **settings)

    def happens(self) -> None:
        """Wait."""
        waited(lambda: self.noted("ahead"))


class LateQuadratic(Quadratic):
    """A quadratic with the workers of `Late`."""

    place: str

    def stochastic_gradient(self, x: np.ndarray, row: Any) -> np.ndarray:
        """Return the gradient, in due time."""
        if np.all(row.update < 0):
            Late(place=self.place).in_due_time(row)
        return super().stochastic_gradient(x, row)


class LateDigits(Softmax):
    """Softmax regression with the workers of `Late`."""

    place: str

    def stochastic_gradient(self, x: np.ndarray, row: Any) -> np.ndarray:
        """Return the gradient, in due time."""
        if np.all(row.update < 0):
            Late(place=self.place).in_due_time(row)
        return super().stochastic_gradient(x, row)


class Torn(At):
    """The worker reads the rest of a model in blocks only when another update has been made since its first block.

    The others wait for it after every `EVERY` of their draws, so that about one read in so many is torn at least.
    """

    EVERY = 20

    def happens(self) -> None:
        """Arrange for it."""
        lock, finish, rest = Memory.lock, Memory.finish, UPDATE + self.blocks - 1
        own = {"writing": False}

        def finishing(memory: Memory) -> None:
            own["writing"] = True
            finish(memory)
            own["writing"] = False

        def locking(memory: Memory, which: int = UPDATE) -> Any:
            if which == rest and not own["writing"]:
                before = memory.version
                self.note("back")
                with open(Path(self.place, "torn"), "ab") as torn:
                    torn.write(b".")
                waited(lambda: memory.version > before or memory.counter[OVER] != RUNNING)
            return lock(memory, which)

        Memory.finish, Memory.lock = finishing, locking  # type: ignore[method-assign]

    def __init__(self, blocks: int, **settings: Any):
        super().__init__(1, 5, until="back", **settings)
        self.blocks = blocks

    def in_due_time(self, row: Any) -> None:
        """Let it happen, and wait for the worker now and then."""
        super().in_due_time(row)
        if row.worker != self.worker and row.draw >= self.EVERY:
            torn = Path(self.place, "torn")
            waited(lambda: torn.exists() and torn.stat().st_size >= row.draw // self.EVERY)


class Failing(At):
    """Raises."""

    def happens(self) -> None:
        """Raise."""
        raise ZeroDivisionError("a gradient of the user's own")


class Missing(Bowl):
    """Needs a module that other processes do not have."""

    def __reduce__(self) -> Any:
        """Be imported from there."""
        return importlib.import_module, ("not_on_this_machine",)


class Exiting(At):
    """Calls sys.exit."""

    def happens(self) -> None:
        """Do it."""
        sys.exit(3)


class Hanging(At):
    """Never comes back from a library that lets no other Python code run; says on standard output which process."""

    def happens(self) -> None:
        """Wait for ever."""
        os.write(1, f"{os.getpid()}\n".encode())
        ctypes.PyDLL(None).sleep(100_000)


class Ended(At):
    """Sends its worker a signal at a moment that has a name in `MOMENTS`."""

    def __init__(
        self, worker: int | None, draw: int, moment: str = "computing", number: int = signal.SIGKILL, **settings: Any
    ):
        super().__init__(worker, draw, **settings)
        self.moment, self.number = moment, number

    def happens(self) -> None:
        """Arrange for it."""
        MOMENTS[self.moment](lambda: os.kill(os.getpid(), self.number))


# --- moments in the life of a worker in shared memory ---


def keeping(end: Callable[[], None]) -> None:
    """Arrange for the end to come while the right to update is held."""
    Memory.keep = lambda memory, version, what: end()  # type: ignore[method-assign]


def storing(number: int, *, after: bool, last: int | None = None) -> Callable[[Callable[[], None]], None]:
    """Return what arranges for the end to come just before or after the store of a counter, that of a value."""

    def arrange(end: Callable[[], None]) -> None:
        class Counter(np.ndarray):
            def __setitem__(self, place: Any, value: Any) -> None:
                now = place == number and last in (None, value)
                if now and not after:
                    end()
                super().__setitem__(place, value)
                if now:
                    end()

        keep = Memory.keep

        def keeping(memory: Memory, version: int, what: Any) -> None:
            memory.counter = memory.counter.view(Counter)
            keep(memory, version, what)

        Memory.keep = keeping  # type: ignore[method-assign]

    return arrange


def locking(byte: int, *, writing: bool) -> Callable[[Callable[[], None]], None]:
    """Return what arranges for the end to come once a lock is held, by somebody who writes or reads."""

    def arrange(end: Callable[[], None]) -> None:
        lock, finish = Memory.lock, Memory.finish
        state = {"writing": False}

        def finishing(memory: Memory) -> None:
            state["writing"] = True
            finish(memory)
            state["writing"] = False

        @contextmanager
        def ending(memory: Memory, which: int = UPDATE) -> Iterator[None]:
            with lock(memory, which):
                if which == byte and state["writing"] == writing:
                    end()
                yield

        Memory.finish, Memory.lock = finishing, ending  # type: ignore[method-assign]

    return arrange


#: The update that is the last where a moment is about that.
LAST = 250

MOMENTS: dict[str, Callable[[Callable[[], None]], None]] = {
    "computing": lambda end: end(),
    "holding the right to update": keeping,
    "before the commit": storing(ROWS, after=False),
    "after the commit": storing(ROWS, after=True),
    "after the last commit": storing(ROWS, after=True, last=LAST),
    "before a model lies ready": storing(UNFINISHED, after=False),
    "after a model lies ready": storing(UNFINISHED, after=True),
    "after the last model lies ready": storing(UNFINISHED, after=True, last=LAST),
    "writing a block": locking(UPDATE + 2, writing=True),
    "reading the first block": locking(UPDATE + 4, writing=False),
    "reading another block": locking(UPDATE + 2, writing=False),
}


class Nosy(Bowl):
    """A bowl whose workers refuse to compute where a heavy library has been imported."""

    def stochastic_gradient(self, x: np.ndarray, row: Any) -> np.ndarray:
        """Return x."""
        heavy = {"numba", "scipy", "pandas", "pyarrow", "simpy", "sklearn", "matplotlib", "networkx"} & set(sys.modules)
        if heavy and row.update < 0:
            raise ImportError(f"a worker has imported {sorted(heavy)}")
        return x
