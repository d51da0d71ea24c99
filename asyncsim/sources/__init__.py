"""Sources: whatever makes a trace. `simulate` picks the one that a scenario names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncsim.problems.base import complete
from asyncsim.scenario import MAX_UPDATES, Scenario, ScenarioError
from asyncsim.spec import dotted

if TYPE_CHECKING:
    from asyncsim.sources.simpy_model import OnUpdate
    from asyncsim.sources.table import TraceParts
    from asyncsim.stored import StoredTrace
    from asyncsim.trace import Trace

ENGINES = ("auto", "compiled", "simpy")

#: Bytes of one coordinate in a message.
BYTES_PER_COORDINATE = 8


def simulate(
    scenario: Scenario,
    *,
    engine: str | None = None,
    replicas: int | Iterable[int] | None = None,
    on_update: OnUpdate | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Trace:
    """Return the trace of a scenario: when each gradient was read and applied.

    Parameters
    ----------
    scenario
        From `asyncsim.load`.
    engine
        "auto", "compiled" or "simpy"; the scenario's own if left out.
    replicas
        How many, or which ones: ``replicas=[5]`` makes replica 5 alone, the same as among others.
    on_update
        Called with the `UpdateRows` of every update; answers "go", "barrier" or "stop".
    progress
        Called with the number of updates made since the last call.

    >>> import asyncsim
    >>> scenario = asyncsim.scenario.build({
    ...     "cluster": {"workers": [{"count": 4, "service": {"law": "exponential", "mean": 1.0}}]},
    ...     "run": {"updates": 1000},
    ... })
    >>> trace = simulate(scenario)
    >>> round(float(trace.staleness().mean()), 1)
    3.0
    """
    identifiers = _identifiers(scenario, replicas)
    if scenario.run.source == "simulate":
        from asyncsim.sources.table import TraceParts

        parts = TraceParts(_bytes_on_wire(scenario))
        _fill(parts, scenario, engine, identifiers, on_update, progress)
        return parts.trace(seed=scenario.seed, workers=scenario.workers)
    if on_update is not None:
        raise ScenarioError(f"on_update needs run.source = 'simulate', not '{scenario.run.source}'")
    if scenario.run.source == "synthetic":
        from asyncsim.sources.synthetic import synthetic_trace

        return synthetic_trace(scenario, identifiers)
    from asyncsim.results import read_trace

    return read_trace(str(scenario.run.trace))


def simulate_to_file(
    scenario: Scenario,
    file: str | Path,
    *,
    engine: str | None = None,
    replicas: int | Iterable[int] | None = None,
    on_update: OnUpdate | None = None,
    progress: Callable[[int], Any] | None = None,
) -> StoredTrace:
    """Simulate a cluster as `simulate` does, but write the trace to a file, and hold only what may still change.

    The file is there as a whole or not at all. What is returned gives the trace in parts, from the file.
    """
    from asyncsim.results import aside
    from asyncsim.sources.table import TraceFile
    from asyncsim.stored import StoredTrace

    identifiers = _identifiers(scenario, replicas)
    most = scenario.run.updates or MAX_UPDATES
    with aside(file) as partial:
        parts = TraceFile(
            _bytes_on_wire(scenario),
            partial,
            seed=scenario.seed,
            workers=scenario.workers,
            replicas=identifiers,
            most=most,
        )
        _fill(parts, scenario, engine, identifiers, on_update, progress)
        parts.close()
    return StoredTrace(file, checked=True)


def _identifiers(scenario: Scenario, replicas: int | Iterable[int] | None) -> list[int]:
    which = scenario.run.replicas if replicas is None else replicas
    return list(range(which)) if isinstance(which, int) else sorted(set(which))


def only_in_python(scenario: Scenario) -> str | None:
    """Return the law of a scenario that only Python can draw from, by its place; None if there is none."""
    cluster = scenario.cluster
    assert cluster is not None
    laws = ((dotted(("cluster", *where)), law) for where, law in cluster.laws_by_place())
    return next((name for name, law in laws if law.table is None), None)


def choose_engine(scenario: Scenario, engine: str | None = None) -> str:
    """Return the engine that simulates a scenario: "compiled" or "simpy".

    "auto" takes the compiled one unless a law can only be evaluated in Python; asking for the compiled one then is an
    error that names the law.
    """
    asked = engine or scenario.run.engine
    if asked not in ENGINES:
        raise ScenarioError(f"engine: unknown engine '{asked}'; allowed: {', '.join(ENGINES)}")
    cannot = None if asked == "simpy" else only_in_python(scenario)
    if asked == "compiled" and cannot is not None:
        raise ScenarioError(f"{cannot}: only Python can draw from this law, so use run.engine = 'simpy' (or 'auto')")
    return "simpy" if asked == "simpy" or cannot is not None else "compiled"


def _message_bytes(scenario: Scenario) -> tuple[int, int]:
    """Return the bytes of a message (to the server, to a worker): what the method says, or 8 for each coordinate."""
    if scenario.problem is None:
        return BYTES_PER_COORDINATE, BYTES_PER_COORDINATE
    told = getattr(scenario.method, "message_bytes", None)
    if told is None:
        return (BYTES_PER_COORDINATE * scenario.problem.dimension,) * 2
    up, down = told(complete(scenario.problem), scenario.workers)
    return int(up), int(down)


def _bytes_on_wire(scenario: Scenario) -> tuple[int, int] | None:
    assert scenario.cluster is not None
    return None if scenario.cluster.network is None else _message_bytes(scenario)


def _fill(
    parts: TraceParts,
    scenario: Scenario,
    engine: str | None,
    identifiers: list[int],
    on_update: OnUpdate | None,
    progress: Callable[[int], Any] | None,
) -> None:
    """Simulate these replicas, one after another."""
    if choose_engine(scenario, engine) == "compiled":
        from asyncsim.sources.compiled import run_replica
    else:
        from asyncsim.sources.simpy_model import run_replica
    for replica in identifiers:
        run_replica(
            scenario,
            replica,
            message_bytes=_message_bytes(scenario),
            on_update=on_update,
            parts=parts,
            progress=progress or (lambda count: None),
        )
