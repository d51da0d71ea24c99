"""Problems of a user's own for real runs: some fail, some kill the process that they run in."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np


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


class At(Bowl):
    """A bowl where something happens when worker `worker` computes its draw `draw`, or a later one."""

    def __init__(self, worker: int, draw: int, **settings: Any):
        super().__init__(**settings)
        self.worker, self.draw = worker, draw

    def stochastic_gradient(self, x: np.ndarray, row: Any) -> np.ndarray:
        """Return x, where nothing happens."""
        if row.worker == self.worker and row.draw == self.draw and row.update < 0:  # not in a replay
            self.happens()
        return self.gradient(x)

    def happens(self) -> None:
        """Do it."""
        raise NotImplementedError


class Failing(At):
    """Raises."""

    def happens(self) -> None:
        """Raise."""
        raise ZeroDivisionError("a gradient of the user's own")


class Killed(At):
    """Kills its worker."""

    def happens(self) -> None:
        """Die as from `kill -9`."""
        os.kill(os.getpid(), signal.SIGKILL)


class KilledWriting(At):
    """Kills its worker in the midst of writing a model block by block: when it takes the lock of block 1 to write."""

    def happens(self) -> None:
        """Arrange for it."""
        from asyncsim.sources.recorded.memory import UPDATE, Memory

        finish, lock = Memory.finish, Memory.lock
        state = {"writing": False}

        def finishing(memory: Memory) -> None:
            state["writing"] = True
            finish(memory)

        def locking(memory: Memory, byte: int = UPDATE) -> Any:
            if state["writing"] and byte == UPDATE + 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return lock(memory, byte)

        Memory.finish, Memory.lock = finishing, locking  # type: ignore[method-assign]


class KilledHolding(At):
    """Kills its worker while it holds the right to update."""

    def happens(self) -> None:
        """Arrange for it."""
        from asyncsim.sources.recorded.memory import Memory

        def keep(memory: Memory, version: int, what: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        Memory.keep = keep  # type: ignore[method-assign]


class Nosy(Bowl):
    """A bowl whose workers refuse to compute where a heavy library has been imported."""

    def stochastic_gradient(self, x: np.ndarray, row: Any) -> np.ndarray:
        """Return x."""
        heavy = {"numba", "scipy", "pandas", "pyarrow", "simpy", "sklearn", "matplotlib", "networkx"} & set(sys.modules)
        if heavy and row.update < 0:
            raise ImportError(f"a worker has imported {sorted(heavy)}")
        return x
