"""The compiled engine gives the same table as the SimPy model, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from generate import scenarios
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from same import assert_same_outcome, first_difference, outcome

from asyncsim.durations import Law
from asyncsim.scenario import ScenarioError, build, load
from asyncsim.sources import choose_engine, simulate
from asyncsim.sweep import cells

TESTS = Path(__file__).parent
FILES = sorted([*(TESTS.parent / "scenarios").glob("*.toml"), *(TESTS / "cases" / "valid").glob("*.toml")])
GENERATED = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=500
)


def assert_engines_agree(scenario, make_on_update=lambda: None, **options):
    """Fail unless both engines give the same trace; each gets an `on_update` of its own."""
    compiled, simpy = (
        outcome(lambda engine=engine: simulate(scenario, engine=engine, on_update=make_on_update(), **options))
        for engine in ("compiled", "simpy")
    )
    assert_same_outcome(compiled, simpy)
    return compiled


@GENERATED
@given(scenarios())
def test_engines_agree_on_generated_scenarios(scenario):
    assert_engines_agree(scenario)


@settings(GENERATED, max_examples=150)
@given(scenarios(), st.integers(2, 9), st.integers(5, 60))
def test_engines_agree_when_asked_for_barriers_and_stops(scenario, every, last):
    def make():
        def on_update(rows):
            seen.append(tuple(np.asarray(field).tolist() for field in rows))
            if rows.update >= last:
                return "stop"
            return "barrier" if rows.update % every == every - 1 else "go"

        return on_update

    seen: list = []
    assert_engines_agree(scenario, make)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]  # what `on_update` saw is the same too


def cell_of(path):
    """Return a scenario file's scenario, or the last cell of its sweep, cut short."""
    scenario = load(path)
    return scenario if scenario.sweep is None else cells(scenario)[-1].scenario


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_engines_agree_on_every_file(path):
    scenario = cell_of(path)
    if scenario.run.source not in ("simulate", "record") or choose_engine(scenario) == "simpy":
        pytest.skip("this file is not for the compiled engine")
    data, most = scenario.resolved(), {"updates": 3000, "replicas": 2}
    data["run"] = {name: min(data["run"].get(name, value), value) for name, value in most.items()}  # real ones too
    if scenario.run.time is not None:
        data["run"]["time"] = scenario.run.time
    assert_engines_agree(build(data, folder=path.parent))


def cluster(*, workers=None, run=None, **rest):
    workers = workers or [{"count": 3, "service": {"law": "exponential", "mean": 1.0}}]
    return build({"seed": 3, "cluster": {"workers": workers}, "run": run or {"updates": 200}, **rest})


@pytest.mark.parametrize("workers", [1, 2, 50, 3000])
def test_engines_agree_for_few_and_many_workers(workers):
    group = {"count": workers, "service": {"law": "gamma", "shape": 2.0, "mean": 1.0}}
    assert_engines_agree(cluster(workers=[group], run={"updates": 4 * workers + 100}))


def test_arrays_that_are_too_small_grow():
    """Slow links down and a policy that stops workers: models pile up on the way, more than the arrays begin with."""
    data = {
        "seed": 1,
        "cluster": {
            "workers": [{"count": 12, "service": {"law": "exponential", "mean": 1.0}}],
            "network": {"topology": "path", "latency": {"law": "exponential", "mean": 30.0}},
        },
        "policy": {"kind": "ringmaster", "max_staleness": 0, "on_stale": "cancel"},
        "run": {"updates": 400},
    }
    trace = assert_engines_agree(build(data))
    assert (trace["status"] != 0).sum() > 400
    assert_engines_agree(cluster(run={"time": 900.0}))  # rows grow where only the time is known
    pile = {"kind": "k_batch_async", "k": 3}
    slow = {"service": {"law": "constant", "value": 5.0}, "reply": "before_apply"}
    group = [{"count": 40, "service": {"law": "exponential", "mean": 1.0}}]
    piled = build({"cluster": {"workers": group, "server": slow}, "policy": pile, "run": {"updates": 200}})
    assert_engines_agree(piled)  # batches wait for the server, more than the ring begins with


def test_the_comparison_sees_a_difference():
    one, other = (simulate(cluster(seed=seed)) for seed in (3, 4))
    assert first_difference(one, other)


# --- what the compiled engine cannot do ---------------------------------------------------------------------------


class Stairs(Law):
    """A law that only Python can evaluate."""

    mean: float = 1.5
    variance: float = 0.25

    def quantile(self, probability):
        return 1.0 + (np.asarray(probability) > 0.5)


@pytest.mark.parametrize(
    "law", [Stairs(), {"law": "scipy", "name": "invgauss", "args": {"mu": 1.0}}], ids=["own", "scipy"]
)
def test_a_law_of_python_is_refused_by_name_and_auto_takes_simpy(law):
    scenario = cluster(workers=[{"service": {"law": "constant", "value": 1.0}}, {"service": law}])
    assert choose_engine(scenario) == "simpy"
    with pytest.raises(ScenarioError, match=r"cluster.workers\[1\].service: only Python"):
        simulate(scenario, engine="compiled")
    assert len(simulate(scenario)) == 200


def test_auto_takes_the_compiled_engine():
    assert choose_engine(cluster()) == "compiled"
    assert choose_engine(cluster(), "simpy") == "simpy"
    with pytest.raises(ScenarioError, match="unknown engine 'fast'"):
        simulate(cluster(), engine="fast")
