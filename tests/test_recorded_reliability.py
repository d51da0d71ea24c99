"""Real runs at full size, by hand: pytest -m slow. A hundred kills for each backend, a thousand runs in a row."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import threading
import time
from collections import Counter
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncsim
from asyncsim.sources.recorded.processes import Processes
from tests.real_problems import Bowl
from tests.test_recorded import assert_replays, belongings, scenario
from tests.test_recorded_mpi import MPIEXEC, comes_true, segments

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("ASYNCSIM_KILLS", "100"))
RUNS = int(os.environ.get("ASYNCSIM_RUNS", "1000"))

SETTINGS: dict[str, dict[str, Any]] = {
    "queue": {"backend": "queue"},
    "manager": {"backend": "manager"},
    "locked": {"backend": "shared_memory", "consistency": "locked"},
    "block": {"backend": "shared_memory", "consistency": "block", "blocks": 8},
    "hogwild": {"backend": "shared_memory", "consistency": "hogwild"},
    "threads": {"backend": "threads"},
}

WORKERS, UPDATES = 3, 300


class Killer:
    """Kills one worker once: some time after the start of the last one, or after some update."""

    def __init__(self, run: int, chance: np.random.Generator):
        self.victim = int(chance.integers(WORKERS))
        self.when = ("starting", "running", "ending")[run % 3]
        first, end = {"starting": (0, 0), "running": (0, UPDATES), "ending": (UPDATES - 20, UPDATES)}[self.when]
        self.update = int(chance.integers(first, end + 1))
        self.delay = float(chance.uniform(0.0, 0.8 if self.when == "starting" else 0.01))
        self.started: list[Any] = []
        self.updates, self.killed_at = 0, 0.0
        self.thread = threading.Thread(target=self._kill)

    def start(self, process: Any) -> None:
        """Note a worker's process."""
        self.started.append(process)
        if self.when == "starting" and len(self.started) == WORKERS:
            self.thread.start()

    def progress(self, updates: int) -> None:
        """Count updates."""
        self.updates += updates
        if self.when != "starting" and self.updates >= self.update and not self.thread.ident:
            self.thread.start()

    def _kill(self) -> None:
        time.sleep(self.delay)
        self.killed_at = time.monotonic()
        self.started[self.victim].send_signal(signal.SIGKILL)


@pytest.mark.parametrize("name", ["queue", "manager", "locked", "block"])
def test_100_kills_at_random_moments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run goes on, starts the worker again or stops, as asked; its trace is valid and replays to the bit."""
    chance = np.random.default_rng([4, list(SETTINGS).index(name)])
    start, seen, slowest, before = Processes.start, Counter[Any](), 0.0, belongings()
    for run in range(KILLS):
        death = ("continue", "restart", "stop")[run // 3 % 3]
        killer = Killer(run, chance)

        def noting(self: Processes, worker: int, killer: Killer = killer) -> None:
            start(self, worker)
            killer.start(self.processes[worker])

        monkeypatch.setattr(Processes, "start", noting)
        recorded = scenario(
            workers=WORKERS, wait="none", updates=UPDATES, on_worker_death=death, **SETTINGS[name]
        ).model_copy(update={"problem": Bowl(64, 0.001)})
        recording = asyncsim.record(recorded, progress=killer.progress)
        took = time.monotonic() - killer.killed_at
        if killer.thread.ident:
            killer.thread.join()
        crashes = [worker for _, _, worker, kind in recording.trace.events if kind == "crash"]
        assert crashes in ([], [killer.victim])  # none where the run was over before the kill was noticed
        if recording.ended is None:
            assert recording.trace.updates.tolist() == [UPDATES]
            assert death != "stop" or not crashes
        else:
            assert death == "stop", recording.ended
            assert f"worker {killer.victim} died (killed by signal 9)" in recording.ended
            slowest = max(slowest, took)
            assert took < 2.0
        assert_replays(recorded, recording)
        seen[killer.when, death, "ended" if recording.ended else "crash" if crashes else "too late"] += 1
    print(f"\n{name}: stopped {slowest:.2f} s after the kill at the latest", *sorted(seen.items()), sep="\n  ")
    assert belongings() == before
    assert sum(count for (_, _, what), count in seen.items() if what != "too late") > KILLS / 2


def figures() -> dict[str, int]:
    """Return what this process holds (Linux): memory in KiB that is its own, descriptors, threads, children."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory": int(status["RssAnon"].split()[0]) + int(status["RssShmem"].split()[0]),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "children": len(belongings()[0]),
    }


def test_1000_short_runs_in_a_row_leak_nothing() -> None:
    """All backends take turns, so that one thousand takes half an hour; what a run leaves counts as its backend's."""
    row = {**SETTINGS, **({"mpi": {"backend": "mpi"}} if MPIEXEC and importlib.util.find_spec("mpi4py") else {})}
    recorded = {name: scenario(workers=2, wait="none", updates=20, **settings) for name, settings in row.items()}
    recorded = {name: short.model_copy(update={"problem": Bowl(1000)}) for name, short in recorded.items()}
    for short in 5 * list(recorded.values()):  # what is there once, and what the allocator keeps
        asyncsim.record(short)
    before, names = figures(), segments()
    last = before
    grown: Counter[str] = Counter()
    for name, short in islice(cycle(recorded.items()), RUNS):
        recording = asyncsim.record(short)
        assert (recording.ended, recording.trace.updates.tolist()) == (None, [20])
        del recording
        now = figures()
        grown[name] += now["memory"] - last["memory"]
        last = now
    print(f"\n{RUNS} runs, before {before}, after {last}; of the memory {dict(grown)}")
    assert {**last, "memory": 0} == {**before, "memory": 0}
    left = segments() - names  # somebody else's, if they go
    assert comes_true(lambda: not left & segments())
    for name, more in grown.items():  # KiB; a run's rows alone are more than 2
        assert more < RUNS / len(row) + 128, name


#: Workers that do next to nothing between two reads, and many more of them than there are cores.
STRESSED = {name: SETTINGS[name] for name in ("threads", "queue", "manager", "locked", "block", "hogwild")}


@pytest.mark.parametrize("name", STRESSED)
def test_tiny_gradients_of_16_workers_keep_the_rules(name: str) -> None:
    """Ten thousands of updates; a trace that breaks one of its rules is refused where it is made."""
    updates = 5000 if name == "manager" else 30_000
    recorded = scenario(workers=16, wait="none", updates=updates, **STRESSED[name])
    recorded = recorded.model_copy(update={"problem": Bowl(64)})
    recording = asyncsim.record(recorded)
    trace = recording.trace
    assert recording.ended is None
    assert trace.updates.tolist() == [updates]
    assert np.unique(trace["worker"]).size == 16
    shares = np.bincount(trace["worker"]) / len(trace)
    mixed = "" if trace.reads is None else f", {(trace.reads != trace.reads[:, :1]).any(axis=1).mean():.1%} mixed"
    rate = updates / trace["apply_time"].max()
    print(f"\n{name}: {rate:.0f}/s, staleness {trace.staleness().mean():.1f}, shares {shares.min():.3f}{mixed}")
    if recording.replayable:
        assert_replays(recorded, recording)
