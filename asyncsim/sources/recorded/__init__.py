"""Real runs: threads or processes compute, and what they do is recorded as a trace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from asyncsim.scenario import SECONDS, Scenario, ScenarioError
from asyncsim.sources.recorded import interrupts
from asyncsim.sources.recorded.replica import Outcome, make_server, serve
from asyncsim.sources.table import TraceParts
from asyncsim.spec import importable
from asyncsim.trace import Trace


@dataclass(frozen=True)
class Recording:
    """What a real run has left.

    Attributes
    ----------
    trace
        What happened, with the times of a monotonic clock.
    final_iterates
        The last version of each replica, shape (replicas, d).
    checksums
        For each replica, a checksum of every version, by which a replay finds the first one that differs.
    ended
        None if the run came to its end, else why not: the trace is what happened until then.
    replayable
        Whether a replay gives the same bits; not so where workers read while others write without locks.
    """

    trace: Trace
    final_iterates: np.ndarray = field(repr=False)
    checksums: tuple[np.ndarray, ...] = field(repr=False)
    ended: str | None = None
    replayable: bool = True

    @property
    def final_iterate(self) -> np.ndarray:
        """The last version of the first replica, shape (d,)."""
        return np.asarray(self.final_iterates[0])


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came; `recording` is what happened until then."""

    def __init__(self, recording: Recording):
        super().__init__(recording.ended)
        self.recording = recording


def record(
    scenario: Scenario,
    *,
    backend: str | None = None,
    replicas: int | Iterable[int] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Recording:
    """Run a scenario's method for real, and return what happened.

    The workers are threads or processes of this machine, one per worker of the scenario's cluster; each computes with
    one thread. Replaying the trace gives the same final iterate to the bit.

    Parameters
    ----------
    scenario
        From `asyncsim.load`; its [run] need not say source = "record" where `backend` is given.
    backend
        "threads", "shared_memory", "queue", "manager" or "mpi", instead of the scenario's own.
    replicas
        How many, or which ones; they run one after another.
    progress
        Called with the number of updates made since the last call.

    Problems and methods of your own lie in modules beside the scenario's file, or wherever this process imports them
    from: worker processes look there too. What the script itself defines (`__main__`) is for threads only.

    Raises `ScenarioError` where the scenario asks for what a real run cannot do, and `Interrupted` on Ctrl-C. A worker
    that is lost for good ends the run: `recording.ended` says so.

    >>> import asyncsim
    >>> scenario = asyncsim.scenario.build({
    ...     "cluster": {"workers": [{"count": 2, "service": {"law": "exponential", "mean": 0.001}}]},
    ...     "problem": {"kind": "quadratic", "eigenvalues": [1.0, 2.0]},
    ...     "method": {"kind": "sgd", "step": 0.1},
    ...     "run": {"source": "record", "backend": "threads", "wait": "sleep", "updates": 50},
    ... })
    >>> recording = asyncsim.record(scenario)
    >>> replayed = asyncsim.replay(recording.trace, scenario.method, scenario.problem)
    >>> bool((replayed.final_iterates[0] == recording.final_iterate).all())
    True
    """
    scenario = _real(scenario, backend)
    which = scenario.run.replicas if replicas is None else replicas
    cluster = scenario.cluster
    assert cluster is not None
    run_replica = _backend(str(scenario.run.backend))
    unit = SECONDS[cluster.time_unit]
    parts = TraceParts(None)
    finals: list[np.ndarray] = []
    checksums: list[np.ndarray] = []
    ended, interrupted = None, False
    # Worker processes look for modules where this one does: those beside the scenario must be found too.
    beside = importable(os.path.realpath(scenario.folder))
    with threadpool_limits(limits=1, user_api="blas"), interrupts.noted(), beside:
        for replica in range(which) if isinstance(which, int) else sorted(set(which)):
            outcome = run_replica(scenario, replica, progress)
            columns, events, updates = outcome.log.table(unit)
            for event in events:
                parts.event(*event)
            parts.add(replica, updates, columns)
            finals.append(outcome.x)
            checksums.append(np.array(outcome.log.checksums[: updates + 1], dtype=np.uint64))
            ended, interrupted = outcome.ended, outcome.interrupted
            if ended is not None:
                break
    recording = Recording(
        trace=parts.trace(seed=scenario.seed, workers=scenario.workers),
        final_iterates=np.array(finals),
        checksums=tuple(checksums),
        ended=ended,
        replayable=scenario.run.consistency != "hogwild",
    )
    if interrupted:
        raise Interrupted(recording)
    return recording


def _real(scenario: Scenario, backend: str | None) -> Scenario:
    """Return the scenario as one that records."""
    if backend is None:
        if scenario.run.source != "record":
            raise ScenarioError("record: needs run.source = 'record' with a backend, or an argument `backend`")
        return scenario
    from asyncsim.scenario import build

    data = scenario.resolved()
    data["run"] = {**data["run"], "source": "record", "backend": backend}
    data["run"].pop("engine", None)
    build(data, folder=scenario.folder)  # refuse what cannot be recorded, in words
    run = scenario.run.model_copy(update={"source": "record", "backend": backend})
    return scenario.model_copy(update={"run": run})


def _backend(name: str) -> Callable[[Scenario, int, Any], Outcome]:
    """Return the function (scenario, replica, progress) → outcome of a backend."""
    if name == "shared_memory":
        from asyncsim.sources.recorded.monitor import run_replica

        return run_replica
    if name == "mpi":
        from asyncsim.sources.recorded.mpi import run_replica as run_ranks

        return run_ranks
    return _with_server


def _with_server(scenario: Scenario, replica: int, progress: Any) -> Outcome:
    """Run a replica with a server in this process."""
    server = make_server(scenario, replica, progress)
    settings = scenario.run
    transport: Any
    if settings.backend == "threads":
        from asyncsim.sources.recorded.threads import Threads

        transport = Threads(server.job)
    else:
        interrupts = scenario.policy.cancels or scenario.policy.sends_to == "everyone"
        if settings.backend == "queue":
            from asyncsim.sources.recorded.queue import Queues

            transport = Queues(server.job, interrupts=interrupts, pin=settings.pin)
        else:
            from asyncsim.sources.recorded.manager import Manager

            transport = Manager(server.job, pin=settings.pin)
    return serve(server, transport)
