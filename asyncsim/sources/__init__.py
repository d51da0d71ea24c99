"""Sources: whatever makes a trace. `simulate` picks the one that a scenario names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from asyncsim.scenario import Scenario, ScenarioError

if TYPE_CHECKING:
    from asyncsim.sources.simpy_model import OnUpdate
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
    which = scenario.run.replicas if replicas is None else replicas
    identifiers = list(range(which)) if isinstance(which, int) else sorted(set(which))
    if scenario.run.source == "simulate":
        return _simulate_cluster(scenario, choose_engine(scenario, engine), identifiers, on_update, progress)
    if on_update is not None:
        raise ScenarioError(f"on_update needs run.source = 'simulate', not '{scenario.run.source}'")
    if scenario.run.source == "synthetic":
        from asyncsim.sources.synthetic import synthetic_trace

        return synthetic_trace(scenario, identifiers)
    from asyncsim.results import read_trace

    return read_trace(str(scenario.run.trace))


def only_in_python(scenario: Scenario) -> str | None:
    """Return the law of a scenario that only Python can draw from, by its place; None if there is none."""
    cluster = scenario.cluster
    assert cluster is not None
    laws = [(f"cluster.workers[{place}].service", group.service) for place, group in enumerate(cluster.workers)]
    laws.append(("cluster.server.service", cluster.server.service))
    if cluster.network is not None:
        laws.append(("cluster.network.latency", cluster.network.latency))
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


def _simulate_cluster(scenario: Scenario, engine: str, identifiers: list[int], on_update: Any, progress: Any) -> Trace:
    from asyncsim.sources.table import TraceParts

    if engine == "compiled":
        from asyncsim.sources.compiled import run_replica
    else:
        from asyncsim.sources.simpy_model import run_replica
    coordinates = 1 if scenario.problem is None else scenario.problem.dimension
    message_bytes = BYTES_PER_COORDINATE * coordinates
    assert scenario.cluster is not None
    parts = TraceParts(None if scenario.cluster.network is None else message_bytes)
    for replica in identifiers:
        updates = run_replica(scenario, replica, message_bytes=message_bytes, on_update=on_update, parts=parts)
        if progress is not None:
            progress(updates)
    return parts.trace(seed=scenario.seed, workers=scenario.workers)
