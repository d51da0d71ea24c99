"""Sweeps: which cells, on which schedules, resumed where they stopped, and what was best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from asyncsim import sweep as module
from asyncsim import tuning
from asyncsim.cells import cells, label, schedule_key
from asyncsim.experiment import make_trace
from asyncsim.report import sweep_lines
from asyncsim.results import ResultsError
from asyncsim.scenario import Scenario, build, load
from asyncsim.sweep import failures, read_results, run_sweep
from asyncsim.tuning import tuned

VALID = Path(__file__).parent / "cases" / "valid"

BASE = {
    "cluster": {"workers": [{"count": 2, "service": {"law": "exponential", "mean": 1.0}}]},
    "problem": {"kind": "quadratic", "eigenvalues": [1.0]},
    "method": {"kind": "sgd", "step": 0.1},
    "run": {"updates": 20, "replicas": 2},
}


def scenario(sweep: dict, **changes: Any) -> Scenario:
    return build({**BASE, **changes, "sweep": sweep})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- which cells --------------------------------------------------------------------------------------------------


def values_of(sweep: dict, **changes: Any) -> list[tuple]:
    return [tuple(cell.values.values()) for cell in cells(scenario(sweep, **changes))]


def test_the_first_axis_varies_slowest() -> None:
    sweep = {"seed": [5, 3], "method.step": {"start": 0.1, "stop": 0.3, "num": 3}}
    assert values_of(sweep) == [(5, 0.1), (5, 0.2), (5, 0.3), (3, 0.1), (3, 0.2), (3, 0.3)]


def test_zipped_paths_move_together_after_the_grid() -> None:
    sweep = {
        "zip": [{"method.step": [0.1, 0.2], "method.momentum": [0.5, 0.0]}, {"run.updates": [7, 8]}],
        "seed": [1, 2],
    }
    found = values_of(sweep)
    assert list(cells(scenario(sweep))[0].values) == ["seed", "method.step", "method.momentum", "run.updates"]
    assert found == [(s, *pair, u) for s in (1, 2) for pair in ((0.1, 0.5), (0.2, 0.0)) for u in (7, 8)]


def test_excluded_combinations_are_left_out() -> None:
    sweep = {"seed": [1, 2], "method.step": [0.1, 0.2], "exclude": [{"seed": 1, "method.step": 0.2}, {"seed": 2}]}
    assert values_of(sweep) == [(1, 0.1)]


def test_a_cell_is_the_scenario_with_its_values() -> None:
    sweep = {"policy": [{"kind": "sync"}, {"kind": "k_async", "k": 2}], "cluster.workers.0.count": [2, 3]}
    found = cells(scenario(sweep))
    assert [(cell.scenario.policy.kind, cell.scenario.workers) for cell in found] == [
        ("sync", 2),
        ("sync", 3),
        ("k_async", 2),
        ("k_async", 3),
    ]
    assert all(cell.scenario.sweep is None for cell in found)
    assert len({cell.key for cell in found}) == 4
    alone = build({**BASE, "policy": {"kind": "k_async", "k": 2}})
    assert found[2].scenario == alone
    assert found[2].key == f"00002-{alone.sha256()[:12]}"


def test_swept_files_and_modules_lie_beside_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    swept = load(
        VALID / "groups.toml",
        overrides={
            "sweep": {
                "problem": [{"kind": "own:Bowl", "depth": 1.0}, {"kind": "logistic", "dataset": "data/two_classes.csv"}]
            },
            "metrics.record": ["loss"],
        },
    )
    assert [cell.scenario.problem.dimension for cell in cells(swept)] == [2, 3]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "0.5"),
        ("sync", "sync"),
        ({"kind": "k_sync", "k": 2}, "k_sync k=2"),
        ({"law": "mixture", "laws": [{"law": "constant", "value": 1}]}, "mixture laws=[constant value=1]"),
    ],
)
def test_labels(value: object, words: str) -> None:
    assert label(value) == words


# --- schedules are shared -----------------------------------------------------------------------------------------


def test_methods_replay_on_the_very_same_schedule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []
    monkeypatch.setattr(module, "make_trace", lambda one: made.append(make_trace(one)) or made[-1])
    swept = scenario({"method.momentum": [0.0, 0.5], "cluster.workers.0.count": [2, 4], "method.step": [0.1, 0.2]})
    run_sweep(swept, tmp_path / "sweep")
    assert len(made) == 2  # one for each cluster, not for each cell
    hashes = {cell.scenario.workers: make_trace(cell.scenario).sha256() for cell in cells(swept)}
    assert {trace.workers: trace.sha256() for trace in made} == hashes


@pytest.mark.parametrize(
    ("path", "values", "shared"),
    [
        ("method.step", [0.1, 0.2], True),
        ("problem.noise", [0.0, 0.5], True),
        ("metrics.every", [5, 10], True),
        ("policy", [{"kind": "async"}, {"kind": "sync"}], False),
        ("cluster.workers.0.service.mean", [1.0, 2.0], False),
        ("run.updates", [10, 20], False),
        ("seed", [0, 1], False),
    ],
)
def test_what_decides_a_schedule(path: str, values: list, shared: bool) -> None:
    first, second = cells(scenario({path: values}))
    assert (schedule_key(first.scenario) == schedule_key(second.scenario)) == shared
    if shared:
        assert make_trace(first.scenario).sha256() == make_trace(second.scenario).sha256()


def test_where_the_model_decides_the_schedule_it_is_not_shared() -> None:
    first, second = cells(
        scenario({"method.step": [0.01, 0.3]}, run={"updates": 50, "stop_when": "loss < 0.1", "replicas": 2})
    )
    assert schedule_key(first.scenario) != schedule_key(second.scenario)
    assert make_trace(first.scenario).updates.sum() > make_trace(second.scenario).updates.sum()


def test_where_messages_take_time_the_dimension_decides() -> None:
    network = {"network": {"bandwidth": 8.0}}
    sweep = {"problem": [{"kind": "quadratic", "eigenvalues": [1.0] * d} for d in (1, 2)]}
    for cluster, shared in ((BASE["cluster"], True), ({**BASE["cluster"], **network}, False)):
        first, second = cells(scenario(sweep, cluster=cluster))
        assert (schedule_key(first.scenario) == schedule_key(second.scenario)) == shared


# --- results, interruption, resumption ----------------------------------------------------------------------------

SWEEP = {"method.step": [0.1, 0.2, 0.3], "cluster.workers.0.count": [1, 2]}


def test_results_have_a_row_per_replica_and_the_swept_paths_first(tmp_path: Path) -> None:
    frame = run_sweep(scenario(SWEEP), tmp_path / "sweep")
    assert frame.columns[:4].tolist() == ["method.step", "cluster.workers.0.count", "replica", "updates"]
    assert frame["replica"].tolist() == [0, 1] * 6
    assert frame["method.step"].tolist() == [0.1] * 4 + [0.2] * 4 + [0.3] * 4
    assert frame.equals(read_results(tmp_path / "sweep"))
    curves = read_results(tmp_path / "sweep", "curves.parquet")
    last = curves[curves["update"] == 20]
    assert np.array_equal(last["value"], frame["loss"])


def test_a_cell_of_a_sweep_is_the_run_of_its_scenario(tmp_path: Path) -> None:
    import asyncsim

    swept = scenario(SWEEP)
    frame = run_sweep(swept, tmp_path / "sweep")
    run = asyncsim.run(cells(swept)[3].scenario, tmp_path / "run")
    mine = frame[(frame["method.step"] == 0.2) & (frame["cluster.workers.0.count"] == 2)]
    assert mine["loss"].mean() == run.summary["final_loss"]
    assert mine["staleness_mean"].mean() == pytest.approx(run.summary["staleness"]["mean"], abs=1e-12)


def test_a_sweep_resumes_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    swept = scenario({**SWEEP, "tune": "method.step", "by": "loss"})
    run_sweep(swept, whole)
    ran: list[Scenario] = []
    finish = module.finish

    def counted(one: Scenario, trace: Any) -> Any:
        ran.append(one)
        if len(ran) in (3, 6):
            raise KeyboardInterrupt
        return finish(one, trace)

    monkeypatch.setattr(module, "finish", counted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(swept, parts)
    assert len(list((parts / "results.parquet").iterdir())) == 2
    with pytest.raises(KeyboardInterrupt):
        run_sweep(swept, parts)
    assert len(list((parts / "results.parquet").iterdir())) == 4
    run_sweep(swept, parts)
    assert len(ran) == 6 + 2  # each cell once, and twice the one that was interrupted
    assert contents(parts) == contents(whole)


def test_a_lost_cell_is_made_again_and_the_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = scenario(SWEEP)
    run_sweep(swept, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "results.parquet" / f"{cells(swept)[4].key}.parquet").unlink()
    ran = []
    finish = module.finish
    monkeypatch.setattr(module, "finish", lambda one, trace: ran.append(one.method.step) or finish(one, trace))
    run_sweep(swept, tmp_path)
    assert ran == [0.3]
    assert contents(tmp_path) == before


def test_a_sweep_that_lost_only_its_best_values_gets_them_again(tmp_path: Path) -> None:
    swept = scenario({**SWEEP, "tune": "method.step", "by": "loss"})
    run_sweep(swept, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "tuned.parquet").unlink()
    run_sweep(swept, tmp_path)
    assert contents(tmp_path) == before


def test_a_cell_that_fails_while_it_is_written_leaves_no_part_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    write, written = pq.write_table, []

    def full_disk(table: Any, file: Any, **settings: Any) -> None:
        written.append(file)
        if len(written) == 4:  # the second cell's results
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(table, file, **settings)

    monkeypatch.setattr(pq, "write_table", full_disk)
    swept = scenario(SWEEP)
    frame = run_sweep(swept, tmp_path / "sweep")
    assert len(frame) == 2 * 5
    assert [failure["reason"] for failure in failures(tmp_path / "sweep")] == [
        "OSError: [Errno 28] No space left on device"
    ]
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
    run_sweep(swept, tmp_path / "sweep")
    run_sweep(swept, tmp_path / "whole")
    assert contents(tmp_path / "sweep") == contents(tmp_path / "whole")


def test_another_sweep_or_a_complete_one_is_refused(tmp_path: Path) -> None:
    run_sweep(scenario(SWEEP), tmp_path / "sweep")
    before = contents(tmp_path)
    with pytest.raises(ResultsError, match="holds this sweep, complete"):
        run_sweep(scenario(SWEEP), tmp_path / "sweep")
    with pytest.raises(ResultsError, match="holds this sweep, complete"):
        run_sweep(scenario(SWEEP, name="renamed", description="reworded"), tmp_path / "sweep")
    for other in (scenario({"seed": [1, 2]}), scenario(SWEEP, seed=9)):
        with pytest.raises(ResultsError, match="holds another run or sweep"):
            run_sweep(other, tmp_path / "sweep")
    assert contents(tmp_path) == before


def test_force_replaces_a_sweep_as_a_whole(tmp_path: Path) -> None:
    run_sweep(scenario({**SWEEP, "tune": "method.step", "by": "loss"}), tmp_path / "sweep")
    run_sweep(scenario({"seed": [1, 2]}), tmp_path / "sweep", force=True)
    run_sweep(scenario({"seed": [1, 2]}), tmp_path / "fresh")
    assert contents(tmp_path / "sweep") == contents(tmp_path / "fresh")


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultsError, match="exists and is no run directory"):
        run_sweep(scenario(SWEEP), tmp_path, force=True)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    (tmp_path / "scenario.json").write_text("{")
    with pytest.raises(ResultsError, match=r"scenario\.json: cannot be read"):
        run_sweep(scenario(SWEEP), tmp_path)


def test_a_broken_trace_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from asyncsim.trace import TraceError

    (tmp_path / "trace.parquet").write_bytes(b"no trace")
    run = {"source": "trace", "trace": str(tmp_path / "trace.parquet")}
    with pytest.raises(TraceError, match="not a trace"):
        run_sweep(scenario({"method.step": [0.1, 0.2]}, run=run), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


# --- the best -----------------------------------------------------------------------------------------------------


def test_the_best_step_of_gradient_descent_is_found(tmp_path: Path) -> None:
    """One worker, f = (x₁² + 3 x₂²)/2: after T updates ‖x‖ = √((1 − η)^2T + (1 − 3η)^2T), least at η = 2/(1 + 3)."""
    swept = scenario(
        {"method.step": [0.3, 0.4, 0.5, 0.6], "problem.start": [1.0, 2.0], "tune": "method.step", "by": "distance"},
        cluster={"workers": [{"service": {"law": "constant", "value": 1.0}}]},
        problem={"kind": "quadratic", "eigenvalues": [1.0, 3.0]},
        metrics={"record": ["distance"]},
    )
    run_sweep(swept, tmp_path)
    best = pd.read_parquet(tmp_path / "tuned.parquet")
    assert best["problem.start"].tolist() == [1.0, 2.0]
    assert best["method.step"].tolist() == [0.5, 0.5]
    assert best["mean"].tolist() == pytest.approx([2**0.5 * 0.5**20, 2 * 2**0.5 * 0.5**20])
    assert best["difference"].tolist() == pytest.approx([0.0, 2**0.5 * 0.5**20])
    assert best["at_edge"].tolist() == [False, False]


def frame_of(scores: dict[tuple[Any, float], list[float]], **columns: Any) -> pd.DataFrame:
    """Return results as a sweep over (method, step) would give them: `loss` of each replica."""
    rows = [
        {"method": method, "step": step, "replica": replica, "loss": loss, "diverged": False}
        for (method, step), losses in scores.items()
        for replica, loss in enumerate(losses)
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_a_cell_in_which_a_replica_diverged_or_was_not_measured_is_not_best() -> None:
    frame = frame_of({("a", 0.1): [3.0, 3.0], ("a", 0.2): [1.0, np.nan], ("a", 0.3): [1.0, 1.0], ("a", 0.4): [2.0] * 2})
    frame.loc[frame["step"] == 0.3, "diverged"] = [False, True]
    best = tuned(frame, "step", "loss")
    assert best["step"].tolist() == [0.4]
    assert best["at_edge"].tolist() == [True]


def test_where_nothing_is_usable_there_is_no_best() -> None:
    best = tuned(frame_of({("a", 0.1): [np.nan], ("b", 0.1): [1.0]}), "step", "loss")
    assert best["method"].tolist() == ["a", "b"]
    assert best["mean"].isna().tolist() == [True, False]
    assert best["at_edge"].tolist() == [False, False]
    nothing = tuned(frame_of({("a", 0.1): [np.nan]}), "step", "loss")
    assert nothing.columns.tolist() == best.columns.tolist()
    assert tuned(frame_of({("a", 0.1): [1.0]}), "step", "rate")["mean"].isna().all()


@pytest.mark.parametrize("search", [{}, {"search": {"path": "method.step", "low": 0.01, "high": 0.02}}])
def test_a_sweep_that_finds_no_best_says_so(search: dict, tmp_path: Path) -> None:
    sweep = {"method.momentum": [0.0, 0.5], "seed": [1, 2], "tune": "method.momentum", "by": "updates_to_target"}
    swept = scenario({**sweep, **search}, metrics={"target": "loss < 1e-300"})
    frame = run_sweep(swept, tmp_path)
    best = pd.read_parquet(tmp_path / "tuned.parquet")
    assert best["seed"].tolist() == [1, 2]
    assert best["mean"].isna().all()
    assert not best["at_edge"].any()
    assert any("no best value where every cell" in line for line in sweep_lines(swept, frame, tmp_path))


def test_words_have_no_edge() -> None:
    best = tuned(frame_of({("a", 0.1): [1.0], ("b", 0.1): [2.0]}), "method", "loss")
    assert (best["method"].tolist(), best["at_edge"].tolist()) == (["a"], [False])


def test_several_paths_are_tuned_together() -> None:
    frame = frame_of({(m, s): [abs(m - 0.5) + abs(s - 0.2)] for m in (0.0, 0.5, 0.9) for s in (0.1, 0.2, 0.3)})
    best = tuned(frame, ("method", "step"), "loss")
    assert best[["method", "step"]].values.tolist() == [[0.5, 0.2]]
    assert not best["at_edge"].any()


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """Means of 8 normal numbers: 95 % of Student's intervals hold the truth; half as wide ones must not."""
    numbers = np.random.default_rng(3).normal(2.0, 1.0, size=(2000, 8))
    low, high = np.array([tuning._interval(values)[1:] for values in numbers]).T
    covered = float(((low < 2.0) & (high > 2.0)).mean())
    assert abs(covered - 0.95) < 0.015
    middle, half = (low + high) / 2, (high - low) / 4
    assert float((np.abs(middle - 2.0) < half).mean()) < 0.8


def test_a_sweep_of_objects_writes_json_that_reads_back(tmp_path: Path) -> None:
    run_sweep(scenario({"policy": [{"kind": "sync"}, {"kind": "rennala", "batch": 2}]}), tmp_path)
    resolved = json.loads((tmp_path / "scenario.json").read_text())
    assert cells(build(resolved))[1].scenario.policy.kind == "rennala"
