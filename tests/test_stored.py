"""Traces too long to be held: written, checked, measured and replayed part by part, with the same result."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from generate import scenarios
from hypothesis import HealthCheck, given, settings
from same import assert_same_trace, outcome
from test_trace import BATCHED, BROKEN, LIVELY, Parts

import asyncsim
from asyncsim import pictures, staleness, stored
from asyncsim.methods import SGD
from asyncsim.problems import Quadratic, Softmax
from asyncsim.results import open_run, open_trace, read_trace, write_trace
from asyncsim.scenario import Metrics, Scenario, build
from asyncsim.sources import compiled, simulate, simulate_to_file
from asyncsim.stored import StoredTrace, TraceWriter
from asyncsim.trace import Trace, TraceError

#: Rows of a row group, and of what the engine holds before it gives rows away.
FEW = 16


@pytest.fixture
def small(monkeypatch):
    """Row groups and windows of few rows, and every trace too long to be held."""
    monkeypatch.setattr(stored, "ROW_GROUP", FEW)
    monkeypatch.setattr(stored, "LONGEST_IN_MEMORY", 0)
    monkeypatch.setattr("asyncsim.windows.WINDOW", FEW)
    monkeypatch.setattr(compiled, "PAUSE_AFTER", 7)


def longer(scenario: Scenario) -> Scenario:
    """The same with five times the updates, so that a few row groups are filled."""
    run = scenario.run.model_copy(update={"updates": 5 * (scenario.run.updates or 0)})
    return scenario.model_copy(update={"run": run})


# --- writing ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(scenario=scenarios())
def test_a_trace_written_as_it_is_made_is_the_same(scenario, small, tmp_path):
    scenario, file = longer(scenario), tmp_path / "trace.parquet"
    whole = outcome(lambda: simulate(scenario, engine="compiled"))
    in_parts = outcome(lambda: simulate_to_file(scenario, file, engine="compiled"))
    if isinstance(whole, str):  # a cluster that stands still
        assert (in_parts, file.exists()) == (whole, False)
        return
    assert_same_trace(read_trace(file), whole)
    assert in_parts.sha256() == whole.sha256()
    assert StoredTrace(file).sha256() == whole.sha256()  # checked as it is read


def cluster(updates=2000, replicas=1, count=4, **more):
    groups = [
        {"count": count, "service": {"law": "exponential", "mean": 1.0}},
        {"service": {"law": "exponential", "mean": 40.0}},
    ]
    data = {"cluster": {"workers": groups}, "run": {"updates": updates, "replicas": replicas}, "seed": 3, **more}
    return build(data)


def test_only_rows_that_may_still_change_are_held(small, monkeypatch, tmp_path):
    held = []
    columns, grown = compiled._columns, compiled._grown

    def noted(*arguments):
        made = grown(*arguments)
        held.append(made[1].worker.size)
        return made

    monkeypatch.setattr(compiled, "_columns", lambda rows: held.append(rows) or columns(rows))
    monkeypatch.setattr(compiled, "_grown", noted)
    simulate_to_file(cluster(), tmp_path / "trace.parquet", engine="compiled")
    assert len(held) > 20
    assert max(held) <= FEW + 5 + 64
    held.clear()
    simulate(cluster(), engine="compiled")
    assert max(held) > 2000


def test_both_engines_write_the_same(small, tmp_path):
    scenario = cluster(updates=300, replicas=2)
    hashes = {simulate_to_file(scenario, tmp_path / engine, engine=engine).sha256() for engine in ("compiled", "simpy")}
    assert hashes == {simulate(scenario).sha256()}


def test_progress_is_told_within_a_replica(small, tmp_path):
    for make in (simulate, lambda *a, **b: simulate_to_file(a[0], tmp_path / "trace.parquet", **b)):
        steps: list[int] = []
        make(cluster(updates=100), engine="compiled", progress=steps.append)
        assert sum(steps) == 100
        assert len(steps) > 10


class Killed(BaseException):
    """What ends a process from outside."""


@pytest.mark.parametrize("when", ["rows", "end"])
def test_an_interrupted_trace_leaves_no_file(when, small, monkeypatch, tmp_path):
    def stop(*arguments):
        raise Killed

    monkeypatch.setattr(TraceWriter, "_flush" if when == "rows" else "close", stop)
    with pytest.raises(Killed):
        simulate_to_file(cluster(), tmp_path / "trace.parquet")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from asyncsim import experiment, stored
from test_stored import FEW, cluster
stored.ROW_GROUP, stored.LONGEST_IN_MEMORY = FEW, 0
flush, written = stored.TraceWriter._flush, []
def counted(writer):
    flush(writer)
    written.append(1)
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
stored.TraceWriter._flush = counted
experiment.run(cluster(), sys.argv[1])
"""


def test_a_run_killed_while_it_writes_is_not_there(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(asyncsim.__file__).parents[1])])
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("trace.parquet"))


# --- checking ---------------------------------------------------------------------------------------------------------

#: What a file cannot hold; draws that need not be consecutive, which are checked all at once; and a trace whose first
#: replica comes last: it breaks rule 4, but its end is missed before its beginning is seen.
ELSEWHERE = ("a_column_is_shorter", "an_unknown_status", "a_negative_status", "a_draw_twice", "replicas_are_mixed")


def store(trace: Trace, file: Path) -> None:
    """Write a trace that need not be one."""
    writer = TraceWriter(file, trace.columns)
    for low in range(0, len(trace), FEW):
        writer.write({name: trace[name][low : low + FEW] for name in trace.columns})
    writer.close(trace)


@pytest.mark.parametrize(
    ("mutation", "trace"),
    [pytest.param(*case[1:], id=case[1].__name__) for case in BROKEN if case[1].__name__ not in ELSEWHERE],
)
def test_a_broken_file_is_refused_with_the_same_words(mutation, trace, small, monkeypatch, tmp_path):
    parts = Parts(trace)
    mutation(parts)
    with pytest.raises(TraceError) as whole:
        parts.build()
    with monkeypatch.context() as patch:
        patch.setattr("asyncsim.trace.check", lambda trace: None)
        store(parts.build(), tmp_path / "trace.parquet")
    with pytest.raises(TraceError) as in_parts:
        open_trace(tmp_path / "trace.parquet")
    assert str(in_parts.value) == str(whole.value)


@pytest.mark.parametrize("trace", [LIVELY, BATCHED], ids=["lively", "batched"])
@pytest.mark.parametrize("without", [(), stored.COLUMNS.keys() - asyncsim.trace.REQUIRED.keys()], ids=["all", "few"])
def test_a_good_file_is_not(trace, without, small, tmp_path):
    parts = Parts(trace)
    parts.drop(*without)
    whole = parts.build()
    write_trace(whole, tmp_path / "trace.parquet")
    opened = open_trace(tmp_path / "trace.parquet")
    assert isinstance(opened, StoredTrace)
    assert_same_trace(opened, whole)
    assert opened.has_times == whole.has_times


# --- measuring --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same trace in memory and in row groups of few rows."""
    policy = {"kind": "ringmaster", "max_staleness": 5}
    whole = simulate(cluster(updates=200, replicas=3, policy=policy))
    file = tmp_path_factory.mktemp("stored") / "trace.parquet"
    store(whole, file)
    return whole, StoredTrace(file)


MEASURES = {
    "histogram": lambda trace: staleness.histogram_of(trace, warmup=10),
    "per worker": lambda trace: np.stack(list(staleness.per_worker(trace, warmup=10).values())),
    "throughput": lambda trace: staleness.throughput(trace, warmup=10),
    "utilization": staleness.utilization,
    "concurrency": staleness.concurrency,
    "last time": lambda trace: np.array(trace.last_time()),
    "update times": lambda trace: trace.update_times(1),
    "version times": lambda trace: trace.version_times(1, np.array([0, 200, 7, 7])),
    "versions": lambda trace: trace.versions_at(1, np.linspace(0.0, 90.0, 40)),
    "slices": lambda trace: np.array([(rows.start, rows.stop) for _, _, rows in trace.slices()]),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_measurements_are_the_same(measure, both):
    whole, in_parts = (measure(trace) for trace in both)
    assert np.array_equal(whole, in_parts, equal_nan=True)
    assert np.isfinite(whole).any()


# --- replaying --------------------------------------------------------------------------------------------------------

METHODS = {"sgd": SGD(step=0.05), "heavy ball": SGD(step=0.02, momentum=0.5, step_rule="staleness")}
PROBLEMS = {"quadratic": Quadratic(eigenvalues=[1.0, 2.0], noise=0.1), "softmax": Softmax(dataset="digits", batch=4)}
POLICY = {"async": {"kind": "async"}, "k_async": {"kind": "k_async", "k": 3}}


@pytest.mark.parametrize("held", [0, 200, 10_000])
@pytest.mark.parametrize("policy", POLICY)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_a_replay_from_a_file_gives_the_same_bits(method, problem, policy, held, small, monkeypatch, tmp_path):
    """Replicas alone, two at a time, and all together."""
    monkeypatch.setattr(stored, "LONGEST_IN_MEMORY", held)
    scenario = cluster(updates=30, replicas=5, policy=POLICY[policy])
    whole = simulate(scenario)
    in_parts = simulate_to_file(scenario, tmp_path / "trace.parquet")
    for metrics in (Metrics(every=7), Metrics(at_times=9)):
        runs = [
            asyncsim.replay(trace, METHODS[method], PROBLEMS[problem], metrics=metrics) for trace in (whole, in_parts)
        ]
        assert np.array_equal(runs[0].final_iterates, runs[1].final_iterates)
        assert runs[0].metrics.equals(runs[1].metrics)
    assert np.isfinite(runs[0].final_iterates).all()


def test_a_window_keeps_only_versions_still_to_be_read(small, monkeypatch, tmp_path):
    """Async: each worker holds one version, the slow one an old one; with the current one that makes workers + 1."""
    trace = simulate_to_file(cluster(), tmp_path / "trace.parquet")
    kept = []
    write = asyncsim.schedule.ReplicaSchedule.write

    def noted(schedule, version, x):
        write(schedule, version, x)
        kept.append(len(schedule.kept))

    monkeypatch.setattr(asyncsim.schedule.ReplicaSchedule, "write", noted)
    asyncsim.replay(trace, SGD(step=0.01), Quadratic(eigenvalues=[1.0]))
    assert len(kept) == 2001
    assert max(kept) <= trace.workers + 1


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_long_run_is_the_same_run(small, monkeypatch, tmp_path):
    scenario = cluster(
        updates=300,
        replicas=2,
        problem={"kind": "quadratic", "eigenvalues": [1.0, 3.0]},
        method={"kind": "sgd", "step": 0.01},
        metrics={"every": 50, "target": "loss < 0.5"},
    )
    long = asyncsim.run(scenario, tmp_path / "long")
    assert isinstance(long.trace, StoredTrace)
    with monkeypatch.context() as patch:
        patch.setattr(stored, "LONGEST_IN_MEMORY", 10**6)
        short = asyncsim.run(scenario, tmp_path / "short")
        assert not isinstance(short.trace, StoredTrace)
    opened = open_run(tmp_path / "long")
    assert isinstance(opened.trace, StoredTrace)
    names = ["iterates.npz", "metrics.parquet", "scenario.json", "summary.json"]
    for name in names:
        assert (tmp_path / "long" / name).read_bytes() == (tmp_path / "short" / name).read_bytes(), name
    drawn = [pictures.draw_run(run, tmp_path / name) for name, run in (("long", opened), ("short", short))]
    assert [path.name for path in drawn[0]] == ["staleness.png", "loss.png", "timeline.png"]
    for long_one, short_one in zip(*drawn, strict=True):
        assert long_one.read_bytes() == short_one.read_bytes(), long_one.name


@pytest.mark.slow
def test_a_hundred_million_gradients_take_less_than_2_gb(tmp_path):
    """The whole command, pictures included; the trace alone would take more than 7 GB."""
    file = tmp_path / "long.toml"
    file.write_text(
        'schema_version = 1\nname = "long"\n[[cluster.workers]]\ncount = 16\n'
        'service = { law = "exponential", mean = 1.0 }\n[run]\nupdates = 100_000_000\n'
    )
    command = [sys.executable, "-m", "asyncsim", "run", str(file), "--out", str(tmp_path / "run"), "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run(command, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > before  # it is this child's
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 2e9
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["gradients"]["applied"] == 10**8
    assert abs(summary["staleness"]["mean"] - 15) < 0.01
