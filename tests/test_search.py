"""The search for each cell's best step: it finds known optima, on one schedule, and says what it cannot do."""

from __future__ import annotations

import numpy as np
import pytest

import asyncsim
from asyncsim import scenario, theory
from asyncsim.documents import ScenarioError
from asyncsim.experiment import make_trace
from asyncsim.replay import plan_of
from asyncsim.scenario import Search, build
from asyncsim.sweep import cells, run_sweep
from asyncsim.tuning import best_value, least, score, with_value

SEARCH = {"path": "method.step", "low": 0.05, "high": 0.6}


def described(workers=1, **changes):
    """Return plain data of a quadratic with eigenvalues 1 and 5."""
    data = {
        "seed": 20,
        "cluster": {"workers": [{"count": workers, "service": {"law": "exponential", "mean": 1.0}}]},
        "problem": {"kind": "quadratic", "eigenvalues": [1.0, 5.0]},
        "method": {"kind": "sgd", "step": 0.1},
        "run": {"updates": 60, "replicas": 24},
        "metrics": {"record": ["rate", "distance"]},
    }
    return data | changes


@pytest.mark.parametrize("bottom", [0.05, 0.3, 0.95])
@pytest.mark.parametrize("shape", [lambda x: x**2, abs, lambda x: x**2 if x < 0.01 else np.inf])
def test_golden_sections_find_the_bottom(bottom, shape):
    assert least(lambda x: shape(x - bottom), 0.0, 1.0, 1e-4) == pytest.approx(bottom, abs=0.002)


@pytest.mark.parametrize("momentum", [-0.3, 0.0, 0.1])
def test_one_worker_finds_the_best_step_of_theory(momentum):
    # Without asynchrony the rate is known: at β = 0 the best step is 2 / (1 + 5).
    one = build(described(method={"kind": "sgd", "step": 0.1, "momentum": momentum}))
    found = best_value(one, Search.model_validate(SEARCH), "rate", make_trace(one))
    best = theory.optimal_step([1.0, 5.0], workers=1, momentum=momentum)
    assert found == pytest.approx(best.step, rel=0.01)


def test_the_final_distance_is_searched_too():
    four = build(described(4))
    trace = make_trace(four)
    found = best_value(four, Search.model_validate(SEARCH), "distance", trace)
    at = {factor: with_value(four, "method.step", factor * found) for factor in (0.8, 1.0, 1.25)}
    scores = {
        factor: score(one, asyncsim.replay(trace, one.method, one.problem, metrics=one.metrics), "distance")
        for factor, one in at.items()
    }
    assert scores[1.0] < min(scores[0.8], scores[1.25])


@pytest.mark.parametrize("replicas", [1, 5])
def test_a_plan_used_again_gives_the_same_bits(replicas):
    one = build(described(4, run={"updates": 60, "replicas": replicas}))
    trace = make_trace(one)
    plan = plan_of(trace, one.method, one.problem)
    runs = [asyncsim.replay(trace, one.method, one.problem, plan=plan) for _ in range(2)]
    alone = asyncsim.replay(trace, one.method, one.problem)
    assert all(np.array_equal(run.final_iterates, alone.final_iterates) for run in runs)


def test_a_diverging_value_is_never_the_best():
    one = build(described(run={"updates": 2000, "replicas": 2}))
    diverging = with_value(one, "method.step", 0.6)
    run = asyncsim.replay(make_trace(one), diverging.method, diverging.problem, metrics=diverging.metrics)
    assert score(diverging, run, "distance") == np.inf


def test_a_sweep_reports_the_searched_step_and_the_momenta_of_theory(tmp_path):
    sweep = {
        "cluster.workers.0.count": [1, 2],
        "method.momentum": [0.0, 0.1, 0.2],
        "search": SEARCH,
        "tune": "method.momentum",
        "by": "rate",
    }
    whole = build(described(sweep=sweep, run={"updates": 40, "replicas": 200}))
    frame = run_sweep(whole, tmp_path / "out")
    per_cell = frame.groupby(["cluster.workers.0.count", "method.momentum"])["method.step"]
    assert (per_cell.nunique() == 1).all()
    assert per_cell.first().between(0.05, 0.6).all()
    assert per_cell.first().nunique() == 6

    import pyarrow.parquet as pq

    best = pq.read_table(tmp_path / "out" / "tuned.parquet").to_pandas().set_index("cluster.workers.0.count")
    for workers in (1, 2):
        row = best.loc[workers]
        assert row["method.step"] == per_cell.first()[workers, row["method.momentum"]]
        for criterion in ("mean", "mean_square"):
            optimum = theory.optimal_momentum([1.0, 5.0], workers=workers, criterion=criterion)
            assert row[f"best_momentum_{criterion}"] == pytest.approx(optimum.momentum, abs=1e-6)
    assert best.loc[1, "method.momentum"] in (0.1, 0.2)
    assert best["difference"].isna().all()  # one rate for all replicas has no pairs


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"search": {**SEARCH, "path": "run.updates"}}, "must be a number of the method"),
        ({"search": {**SEARCH, "path": "method.stride"}}, "stride"),
        ({"search": {**SEARCH, "high": 0.01}}, "must exceed low"),
        ({"search": {**SEARCH, "low": 0.0}}, "low"),
        ({"search": SEARCH, "by": None}, "needs 'by'"),
        ({"search": SEARCH, "method.step": [0.1, 0.2]}, "is swept already"),
        ({"search": {**SEARCH, "path": "method.momentum", "high": 3.0}}, "momentum"),
    ],
)
def test_a_wrong_search_is_refused(sweep, said):
    sweep = {key: value for key, value in {"seed": [1, 2], "by": "rate", **sweep}.items() if value is not None}
    with pytest.raises(ScenarioError, match=said):
        cells(build(described(sweep=sweep)))


def test_a_search_needs_a_schedule_of_its_own():
    stopping = described(
        run={"updates": 60, "replicas": 24, "stop_when": "distance < 0.1"},
        sweep={"seed": [1, 2], "search": SEARCH, "by": "distance"},
    )
    with pytest.raises(ScenarioError, match="stop_when"):
        cells(scenario.build(stopping))
