"""What recording costs, and what a message costs: `python benchmarks/recording.py`, a minute or two.

First the processor time of what is done for the trace alone, for each update, locks left out: reading the clock,
writing the row, and the checksum of the new version. It is compared with a gradient that takes a millisecond. Then the
time from one update to the next of a single worker whose gradient costs nothing: there and back, and the update.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
from table import Line, text  # noqa: E402
from timing import commit, machine, take_turns  # noqa: E402

import asyncsim  # noqa: E402
from asyncsim.checksums import checksum  # noqa: E402
from asyncsim.scenario import Scenario, build  # noqa: E402
from asyncsim.sources.recorded.memory import ROWS, Layout, Memory  # noqa: E402
from asyncsim.sources.recorded.messages import Gradient, SharedJob  # noqa: E402
from asyncsim.sources.recorded.replica import make_server  # noqa: E402
from asyncsim.sources.recorded.shared_memory import SharedWorker  # noqa: E402
from asyncsim.trace import APPLIED  # noqa: E402
from tests.real_problems import Bowl  # noqa: E402

UPDATES = 2000
DIMENSIONS = (1000, 100_000)
GRADIENT = 1e-3

BACKENDS: dict[str, dict[str, Any]] = {
    "threads": {"backend": "threads"},
    "queue": {"backend": "queue"},
    "manager": {"backend": "manager"},
    "shared_memory, locked": {"backend": "shared_memory"},
    "shared_memory, block": {"backend": "shared_memory", "consistency": "block"},
    "shared_memory, hogwild": {"backend": "shared_memory", "consistency": "hogwild"},
}
if find_spec("mpi4py"):
    BACKENDS["mpi"] = {"backend": "mpi"}


def scenario(dimension: int, **run: Any) -> Scenario:
    settings = {
        "cluster": {"workers": [{"count": 1, "service": {"law": "constant", "value": 1.0}}]},
        "problem": {"kind": "quadratic", "eigenvalues": [1.0]},
        "method": {"kind": "sgd", "step": 0.001},
        "run": {"source": "record", "backend": "threads", "updates": UPDATES, **run},
    }
    return build(settings).model_copy(update={"problem": Bowl(dimension)})


def clock() -> None:
    """Read the clock as often as a row has times."""
    for _ in range(UPDATES):
        time.monotonic(), time.monotonic(), time.monotonic(), time.monotonic(), time.monotonic()


def row_of_server() -> Callable[[], None]:
    """Return what notes the read and settles the row of many gradients, as the server does it."""
    server = make_server(scenario(4), 0, None)
    gradient = Gradient(0, 0, 1.0, 2.0, None)

    def run() -> None:
        for _ in range(UPDATES):
            server.reads[0, 0] = 0, 0.5
            server._settle(gradient, APPLIED, 3.0, 4.0)

    return run


def row_in_shared_memory() -> Callable[[], None]:
    """Return what notes the read and writes the row of many gradients, as a worker does it in shared memory."""
    memory = Memory(Layout(size=4, workers=1, blocks=0, extra=0, rows=UPDATES + 1, places=2))
    given = scenario(4)
    worker = SharedWorker(memory, SharedJob(given.method, given.problem, 0, 0, 1), 0, None)  # type: ignore[arg-type]

    def run() -> None:
        memory.counter[ROWS] = 0
        for place in range(UPDATES):
            worker._begin_read()
            memory.log[place] = (0, place, place, place, APPLIED, 0.5, 1.0, 2.0, 3.0, 4.0, place + 1, 7, 0)
            memory.counter[ROWS] = place + 1

    return run


def checksums(dimension: int) -> Callable[[], None]:
    """Return what makes the checksums of many versions."""
    x = np.linspace(0.0, 1.0, dimension)

    def run() -> None:
        for _ in range(UPDATES):
            checksum(x)

    return run


def recording(rounds: int = 15) -> Iterator[Line]:
    """What is done for the trace alone, for each update."""
    parts = {"clock": clock, "server": row_of_server(), "shared memory": row_in_shared_memory()}
    sums = {f"checksum, d = {d:,}": checksums(d) for d in DIMENSIONS}
    seconds = {name: total / UPDATES for name, total in take_turns({**parts, **sums}, rounds).items()}
    for where in ("server", "shared memory"):
        for d in DIMENSIONS:
            pieces = {"clock": seconds["clock"], "row": seconds[where], "checksum": seconds[f"checksum, d = {d:,}"]}
            shown = ", ".join(f"{name} {1e6 * value:.1f} µs" for name, value in pieces.items())
            share = 100 * sum(pieces.values()) / GRADIENT
            yield Line(f"recording in the {where}, d = {d:,}", share, "% of 1 ms", shown, at_most=2.0)


def round_trips(rounds: int = 3, updates: int = 400) -> Iterator[Line]:
    """From one update to the next of a single worker whose gradient costs nothing."""
    for d in DIMENSIONS:
        took: dict[str, list[float]] = {name: [] for name in BACKENDS}
        for _ in range(rounds):
            for name, settings in BACKENDS.items():
                trace = asyncsim.record(scenario(d, updates=updates, **settings)).trace
                took[name].append(1e6 * float(np.median(np.diff(trace["apply_time"]))))
        for name, values in took.items():
            shown = f"medians of {rounds} runs: " + ", ".join(f"{value:.0f}" for value in values)
            yield Line(f"there and back with an update, {name}, d = {d:,}", median(values), "µs", shown)


def locking(rounds: int = 15) -> Iterator[Line]:
    """A lock of the kernel on a byte, taken and given back by the only one who wants it."""
    memory = Memory(Layout(size=4, workers=1, blocks=0, extra=0, rows=1, places=2))

    def lock() -> None:
        for _ in range(UPDATES):
            with memory.lock():
                pass

    yield Line("a lock, taken and given back", 1e6 * take_turns({"lock": lock}, rounds)["lock"] / UPDATES, "µs")


def main() -> None:
    print(f"{commit()} on {machine()}")
    for part in (recording, locking, round_trips):
        for line in part():
            print(text(line), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
