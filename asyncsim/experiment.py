"""From a scenario to a result: make the trace, replay, summarise, save."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncsim import staleness, stored
from asyncsim.checksums import first_difference
from asyncsim.cost import cost
from asyncsim.methods.energies import WithEnergies
from asyncsim.methods.seacd import SEACD
from asyncsim.replay import Plan, Replayer, replay
from asyncsim.results import (
    SCENARIO,
    TRACE,
    folder_aside,
    open_run,
    open_trace,
    refuse_existing,
    scenario_folder,
    write_measured,
    write_run,
)
from asyncsim.runs import Run
from asyncsim.scenario import Scenario, ScenarioError, build
from asyncsim.sources import simulate, simulate_to_file
from asyncsim.sources.recorded import Interrupted, Recording, interrupts, record
from asyncsim.stored import StoredTrace

if TYPE_CHECKING:
    from asyncsim.trace import Trace

#: Updates between two looks at `stop_when` where the metrics do not say.
LOOK_EVERY = 10

Stage = Callable[[str, int | None], Any]


@contextmanager
def _silent(name: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    """Report progress to nobody."""
    yield lambda count: None


def run(
    scenario: Scenario,
    out: str | Path | None = None,
    *,
    engine: str | None = None,
    force: bool = False,
    record_iterates: bool = False,
    stage: Stage = _silent,
) -> Run:
    """Make a scenario's trace and replay its method on its problem.

    Parameters
    ----------
    scenario
        From `asyncsim.load`; one with a [sweep] is for `asyncsim.sweep.run_sweep`.
    out
        Run directory to write; nothing is written without it. `force` overwrites one.
    engine
        "auto", "compiled" or "simpy", instead of the scenario's own.
    record_iterates
        Keep every version in `run.iterates`.
    stage
        A context manager (name, total) → function of progress; for progress bars.

    >>> import asyncsim
    >>> scenario = asyncsim.load("scenarios/quickstart.toml", overrides={"run.updates": 300, "run.replicas": 1})
    >>> asyncsim.run(scenario).summary["updates"]
    300
    """
    if out is not None:
        refuse_existing(Path(out), force=force)
    if scenario.sweep is not None:
        raise ScenarioError("this scenario has a [sweep]: use asyncsim.sweep.run_sweep, or the command `asyncsim run`")
    if engine is not None:
        scenario = scenario.model_copy(update={"run": scenario.run.model_copy(update={"engine": engine})})
    if out is not None and _is_long(scenario):
        with folder_aside(out, force=force) as folder:
            trace = make_trace(scenario, stage=stage, file=folder / TRACE)
            result = finish(scenario, trace, record_iterates=record_iterates, stage=stage)
            write_run(folder, scenario, result)
        return dataclasses.replace(result, trace=StoredTrace(Path(out) / TRACE, checked=True))
    if scenario.run.source == "record":
        return _recorded(scenario, out, force=force, record_iterates=record_iterates, stage=stage)
    result = finish(scenario, make_trace(scenario, stage=stage), record_iterates=record_iterates, stage=stage)
    if out is not None:
        with folder_aside(out, force=force) as folder:
            write_run(folder, scenario, result)
    return result


def _recorded(scenario: Scenario, out: str | Path | None, *, force: bool, record_iterates: bool, stage: Stage) -> Run:
    """Record a real run, and replay it: for its metrics, and to see that the bits are the same.

    A real run cannot be had again, so it is saved before anything else is done with it; until then signals wait.
    """
    from asyncsim.sources.recorded.mpi import place_in_job
    from asyncsim.summary import iterate_sha256

    if scenario.run.backend == "mpi" and place_in_job()[0] > 0:
        out = None  # in a user's own MPI job rank 0 writes it
    with interrupts.noted():
        with stage("recording", _updates(scenario)) as progress:
            try:
                recording, interrupted = record(scenario, progress=progress), False
            except Interrupted as stop:
                recording, interrupted = stop.recording, True
            interrupts.hold_back()
        real = Run(trace=recording.trace, final_iterates=recording.final_iterates, checksums=recording.checksums)
        sha256 = iterate_sha256(recording.final_iterates)

        def told(run: Run, answer: str) -> Run:
            about = {"iterate_sha256": sha256, "recorded": _about(scenario, recording, answer)}
            return dataclasses.replace(run, summary={**run.summary, **about})

        if out is not None:
            with folder_aside(out, force=force) as folder:
                write_run(folder, scenario, told(_unmeasured(scenario, real), "not finished"))
        interrupted = interrupted or interrupts.held_back()
    if interrupted and out is None:
        raise KeyboardInterrupt
    again = finish(scenario, recording.trace, record_iterates=record_iterates, checksums=True, stage=stage)
    result = dataclasses.replace(again, final_iterates=real.final_iterates, checksums=real.checksums)
    result = told(result, comparison(result, again))
    if out is not None:
        write_measured(out, scenario, result)
    if interrupted:
        raise KeyboardInterrupt
    return result


def _about(scenario: Scenario, recording: Recording, answer: str) -> dict[str, Any]:
    """Return what the summary says of a real run as such; times of the gradients that updates after warmup used."""
    trace, warmup = recording.trace, scenario.run.warmup
    used = trace["update"] >= warmup
    busy = staleness.utilization(trace, warmup=warmup)
    mixed = None if trace.reads is None else (trace.reads != trace.reads[:, :1]).any(axis=1)
    return {
        "backend": scenario.run.backend,
        "consistency": scenario.run.consistency,
        "ended_early": recording.ended,
        "deaths": [worker for _, _, worker, kind in trace.events if kind == "crash"],
        "service_mean": float((trace["done_time"] - trace["start_time"])[used].mean()) if used.any() else None,
        "share_computing": None if np.isnan(busy).all() else float(np.nanmean(busy)),
        "mixed_reads": None if mixed is None or not mixed.size else float(mixed.mean()),
        "replay": answer,
    }


def _unmeasured(scenario: Scenario, run: Run) -> Run:
    """Return a run that was not replayed, with the summary that its trace alone gives: nobody else's code is called."""
    from asyncsim.summary import summarise

    nothing = {name: np.empty(0) for name in ("replica", "update", "time", "metric", "value")}
    run = dataclasses.replace(run, measurements=nothing, scenario=scenario.resolved())
    return dataclasses.replace(run, summary=summarise(scenario, run, replayed=False))


def comparison(real: Run, replayed: Run) -> str:
    """Return how a replay compares with the real run, in words; "identical" where every version is the same."""
    assert real.scenario is not None
    if real.scenario["run"]["consistency"] == "hogwild":
        return f"cannot be exact, as nobody locked what was read; {_apart(real, replayed)}"
    difference = first_difference(real.checksums, replayed.checksums)
    if difference is not None:
        place, version = difference
        where = f"replica {int(real.trace.replicas[place])}"
        return f"differs from {f'update {version - 1}' if version else 'the start'} of {where} on"
    return _same_or_apart(real, replayed)


def _same_or_apart(one: Run, other: Run) -> str:
    same = one.final_iterates.tobytes() == other.final_iterates.tobytes()
    return "identical" if same else f"differs: {_apart(one, other)}"


def _apart(one: Run, other: Run) -> str:
    if one.final_iterates.shape != other.final_iterates.shape:
        return "the final iterates have not the same dimension"
    farthest = np.abs(one.final_iterates - other.final_iterates).max(initial=0.0)
    return f"the final iterates differ by at most {farthest:.3g}"


def replay_run(folder: str | Path, *, stage: Stage = _silent) -> str:
    """Replay the trace of a run directory with its own method and problem, and say how the result compares.

    "identical …" where the bits are the same: every version's for a real run, the final iterates' for a simulated one.
    """
    saved = open_run(folder)
    assert saved.scenario is not None
    if "problem" not in saved.scenario:
        raise ScenarioError(f"{folder}: has no [problem] and [method], so there is nothing to replay")
    scenario = build(saved.scenario, name=f"{folder}/{SCENARIO}", folder=scenario_folder(folder))
    real = scenario.run.source == "record"
    again = finish(scenario, saved.trace, checksums=real, stage=stage)
    answer = comparison(saved, again) if real else _same_or_apart(saved, again)
    if answer == "identical":
        answer += f" in all {int(saved.trace.updates.sum()):,} updates" if real else " in the final iterates"
    changed = saved.trace.sha256() != saved.summary.get("trace_sha256")
    return answer + "; but the trace is not the one that the run wrote" * changed


def _updates(scenario: Scenario) -> int | None:
    """Return how many updates all replicas will make, where that is known."""
    return None if scenario.run.updates is None else scenario.run.updates * scenario.run.replicas


def _is_long(scenario: Scenario) -> bool:
    """Say whether a simulation is expected to make a trace too long to be held."""
    return scenario.run.source == "simulate" and cost(scenario).gradients > stored.LONGEST_IN_MEMORY


def make_trace(scenario: Scenario, *, stage: Stage = _silent, file: Path | None = None) -> Trace:
    """Return a scenario's trace; where `stop_when` or the method decides on the way, a replay drives the simulation.

    A simulation writes it to `file`, if one is given, as it goes, and what is returned reads it from there.
    """
    if scenario.run.source == "trace":
        return open_trace(str(scenario.run.trace))
    on_update = None
    asks = scenario.run.source == "simulate" and getattr(scenario.method, "makes_requests", False)
    if scenario.run.stop_when is not None or asks:
        on_update = Replayer(
            scenario.method,
            scenario.problem,
            seed=scenario.seed,
            workers=scenario.workers,
            stop_when=scenario.run.stop_when,
            every=scenario.metrics.every or LOOK_EVERY,
        ).step
    with stage("simulating", _updates(scenario)) as progress:
        if file is not None:
            return simulate_to_file(scenario, file, on_update=on_update, progress=progress)
        return simulate(scenario, on_update=on_update, progress=progress)


def finish(
    scenario: Scenario,
    trace: Trace,
    *,
    record_iterates: bool = False,
    checksums: bool = False,
    stage: Stage = _silent,
) -> Run:
    """Replay a scenario's method along a trace, and summarise."""
    from asyncsim.summary import summarise

    if scenario.problem is None:
        result = Run(trace=trace, final_iterates=np.empty((trace.replicas.size, 0)))
    else:
        with stage("replaying", int(trace.updates.sum())) as progress:
            result = replayed(scenario, trace, record_iterates=record_iterates, checksums=checksums, progress=progress)
    return dataclasses.replace(result, summary=summarise(scenario, result), scenario=scenario.resolved())


def replayed(
    scenario: Scenario,
    trace: Trace,
    *,
    record_iterates: bool = False,
    checksums: bool = False,
    plan: Plan | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Run:
    """Replay a scenario's method along a trace, measuring what it asks for."""
    method = scenario.method
    if isinstance(method, SEACD) and method.sweep == "jacobi" and "energy" in scenario.metrics.record:
        method = WithEnergies(method)
    run = replay(
        trace,
        method,
        scenario.problem,
        record_iterates=record_iterates or "momentum" in scenario.metrics.record,
        checksums=checksums,
        metrics=scenario.metrics,
        end_time=scenario.run.time,
        plan=plan,
        progress=progress,
    )
    if isinstance(method, WithEnergies):
        found = method.complete(run.measurements, run.metric_names.index("energy"))
        run = dataclasses.replace(run, measurements=found)
    return run
