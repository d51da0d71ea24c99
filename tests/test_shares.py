"""Data on workers: every sample with one worker, who draws from its own only, in every engine and process alike."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

import asyncsim
from asyncsim import pictures, plots
from asyncsim.problems import AnyProblem, LeastSquares, Softmax
from asyncsim.problems.shares import Shares
from asyncsim.report import summary_lines
from asyncsim.scenario import Scenario, ScenarioError, build
from asyncsim.trace import Row, Trace

SEED = 7
SPLITS: dict[str, dict[str, Any]] = {
    "iid": {"split": "iid"},
    "one_class": {"split": "one_class"},
    "dirichlet": {"split": "dirichlet", "alpha": 0.3},
}

# --- the division ----------------------------------------------------------------------------------------------------


@st.composite
def divisions(draw: st.DrawFn) -> tuple[Shares, np.ndarray]:
    """Draw a split and the classes of some samples, of which there are enough for everyone."""
    split = draw(st.sampled_from(sorted(SPLITS)))
    count = draw(st.integers(2, 6))
    workers = draw(st.integers(count if split == "one_class" else 1, 20))
    least = -(-workers // count)
    sizes = [draw(st.integers(least, least + 12)) for _ in range(count)]
    classes = np.repeat(np.arange(count), sizes)[np.argsort(draw(st.permutations(range(sum(sizes)))))]
    alpha = draw(st.sampled_from([1e-300, 1e-3, 0.3, 10.0, 1e9])) if split == "dirichlet" else None
    return Shares(split=split, alpha=alpha, workers=workers, seed=draw(st.integers(0, 2**64 - 1))), classes


@settings(max_examples=80, deadline=None)
@given(divisions())
def test_every_sample_lies_with_one_worker_and_everyone_holds_one(division: tuple[Shares, np.ndarray]) -> None:
    shares, classes = division
    held = shares.held(classes.size, classes)
    assert sorted(held.samples) == list(range(classes.size))
    parts = [held.of(worker) for worker in range(shares.workers)]
    np.testing.assert_array_equal(np.concatenate(parts), held.samples)
    assert min(map(len, parts)) >= 1
    count = classes.max() + 1
    counts = [np.bincount(classes[part], minlength=count).tolist() for part in parts]
    assert held.counts(classes).tolist() == counts
    if shares.split == "iid":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if shares.split == "one_class":
        for label in range(count):
            assert all((classes[part] == label).all() for part in parts[label::count])
            assert np.ptp([len(part) for part in parts[label::count]]) <= 1
    again = shares.model_copy().held(classes.size, classes)
    np.testing.assert_array_equal(again.samples, held.samples)


@pytest.mark.parametrize("split", SPLITS)
def test_the_seed_and_nothing_else_decides(split: str) -> None:
    classes = np.arange(300) % 3

    def held(seed: int) -> list[int]:
        return Shares(**SPLITS[split], workers=6, seed=seed).held(300, classes).samples.tolist()

    assert held(1) == held(1)
    assert held(1) != held(2)


def test_a_random_part_has_no_order() -> None:
    """Which of ten workers holds a sample says nothing about its place in the data set; cut in order it says all."""
    shares = Shares(split="iid", workers=10, seed=SEED)
    held = shares.held(samples=2000)
    table = np.array([np.bincount(held.of(worker) // 200, minlength=10) for worker in range(10)])
    assert stats.chi2_contingency(table).pvalue > 0.001
    assert stats.chi2_contingency(np.diag(np.full(10, 200)) + 1e-9).pvalue < 1e-9


ALPHAS = [0.05, 0.5, 5.0]


def variance_error(proportions: np.ndarray, alpha: float) -> float:
    """Return how many standard errors lie between the proportions' variance and that of Dirichlet(α, …, α)."""
    workers = proportions.shape[1]
    squares = (proportions[:, 0] - 1 / workers) ** 2
    expected = (1 / workers) * (1 - 1 / workers) / (workers * alpha + 1)
    return float((squares.mean() - expected) / (squares.std() / np.sqrt(squares.size)))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_proportions_are_dirichlet(alpha: float) -> None:
    """Mean 1/M, variance (1/M)(1 − 1/M)/(Mα + 1), marginals Beta(α, (M − 1)α); not so for an α half as large again."""
    workers = 5
    proportions = Shares(split="dirichlet", alpha=alpha, workers=workers, seed=SEED).proportions(4000)
    np.testing.assert_allclose(proportions.sum(axis=1), 1.0, rtol=1e-12)
    error = proportions.std(axis=0) / np.sqrt(len(proportions))
    assert (np.abs(proportions.mean(axis=0) - 1 / workers) < 4 * error).all()
    assert abs(variance_error(proportions, alpha)) < 3.3
    assert abs(variance_error(proportions, 1.5 * alpha)) > 4
    for worker in (0, 4):
        exact, wrong = (stats.beta(a, (workers - 1) * a).cdf for a in (alpha, 1.5 * alpha))
        positive = proportions[:, worker]
        assert stats.kstest(positive, exact).pvalue > 0.001
        assert stats.kstest(positive, wrong).pvalue < 1e-6


def test_classes_are_cut_at_their_proportions() -> None:
    shares = Shares(split="dirichlet", alpha=1.0, workers=4, seed=SEED)
    classes = np.repeat(np.arange(6), [500, 400, 300, 200, 100, 50])
    counts = shares.held(classes.size, classes).counts(classes)
    wanted = shares.proportions(6).T * np.bincount(classes)
    assert np.abs(counts - wanted).max() <= 1
    assert np.abs(counts - np.bincount(classes) / 4).max() > 50


def test_a_large_alpha_makes_all_alike_and_a_small_one_leaves_a_class_with_one() -> None:
    classes = np.arange(4000) % 8
    alike, apart = (
        Shares(split="dirichlet", alpha=alpha, workers=5, seed=SEED).held(4000, classes).counts(classes)
        for alpha in (1e8, 1e-6)
    )
    assert set(alike.ravel()) <= {99, 100, 101}
    assert sorted(apart.max(axis=0))[0] >= 500 - 5


def test_who_has_nothing_takes_from_who_has_most() -> None:
    """One class, which a tiny α leaves with one of six workers: the others take a sample each from that one."""
    held = Shares(split="dirichlet", alpha=1e-9, workers=6, seed=SEED).held(20, np.zeros(20, dtype=np.int64))
    assert sorted(held.sizes) == [1, 1, 1, 1, 1, 15]
    everyone = Shares(split="dirichlet", alpha=1e-9, workers=20, seed=SEED).held(20, np.zeros(20, dtype=np.int64))
    assert set(everyone.sizes) == {1}


# --- problems --------------------------------------------------------------------------------------------------------

TORCH = importlib.util.find_spec("torch") is not None
PROBLEMS: dict[str, dict[str, Any]] = {
    "softmax": {"kind": "softmax", "dataset": "digits", "l2": 0.1},
    "logistic": {"kind": "logistic", "dataset": "breast_cancer", "l2": 0.1},
    "least_squares": {"kind": "least_squares", "dataset": "digits", "l2": 0.1},
    "least_squares_made_up": {"kind": "least_squares", "samples": 90, "dimension": 5, "noise": 1.0},
    "tanh_network": {"kind": "tanh_network", "hidden": 3},
    "conv_network": {"kind": "conv_network", "filters": 2},
    "autoencoder": {"kind": "autoencoder", "hidden": [4]},
    "torch": {"kind": "torch", "module": "torch_modules:Tanh", "arguments": {"hidden": 3}, "device": "cpu"},
}
CASES = [
    pytest.param(name, split, marks=pytest.mark.skipif(name == "torch" and not TORCH, reason="needs PyTorch"))
    for name in PROBLEMS
    for split in SPLITS
    if split == "iid" or not name.startswith("least_squares")
]
ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyProblem)


def divided(name: str, split: str, workers: int = 10, **fields: Any) -> Any:
    """Return a problem with its data divided."""
    problem = ADAPTER.validate_python({**PROBLEMS[name], **fields}, context={"folder": str(Path(__file__).parent)})
    return problem.shared_out(Shares(**SPLITS[split], workers=workers, seed=SEED))


def point(problem: Any, *shape: int) -> np.ndarray:
    return np.asarray(0.3 * np.random.default_rng(1).normal(size=(*shape, problem.dimension)))


@pytest.mark.parametrize(("name", "split"), CASES)
def test_full_gradients_are_those_of_the_shares_and_add_up_to_the_whole(name: str, split: str) -> None:
    problem = divided(name, split)
    x, held = point(problem), problem.held
    own = np.array([problem.stochastic_gradient(x, Row(SEED, 0, worker, 3)) for worker in range(10)])
    whole = problem.gradient(x)
    np.testing.assert_allclose(held.sizes @ own / held.sizes.sum(), whole, rtol=1e-9, atol=1e-12)
    one_by_one = np.mean([problem.gradient_over(x, np.array([sample])) for sample in held.of(4)], axis=0)
    np.testing.assert_allclose(own[4], one_by_one, rtol=1e-9, atol=1e-12)
    assert np.abs(own - whole).max() > 1e-3 * np.abs(whole).max()
    np.testing.assert_array_equal(problem.value(x), problem.shared_out(None).value(x))
    np.testing.assert_array_equal(problem.shared_out(None).stochastic_gradient(x, Row(SEED, 0, 4, 3)), whole)


@pytest.mark.parametrize(("name", "split"), [case for case in CASES if case.values[0] != "torch"])
def test_a_batch_of_replicas_uses_the_samples_of_each_alone(name: str, split: str) -> None:
    """Worker, draw and replica are arrays there; workers of different shares stand side by side."""
    replica, worker, draw = np.arange(6), np.array([0, 9, 3, 3, 0, 5]), np.array([4, 0, 17, 2, 4, 1])
    rows = [Row(SEED, int(r), int(w), int(d)) for r, w, d in zip(replica, worker, draw, strict=True)]
    sampled, full = divided(name, split, batch=5), divided(name, split)
    chosen = sampled.chosen(Row(SEED, replica, worker, draw), 5)
    for mine, row in zip(chosen, rows, strict=True):
        np.testing.assert_array_equal(sampled.chosen(row, 5), mine)
        assert set(mine) <= set(sampled.held.of(row.worker))
    x = point(sampled, 6)
    for problem in (sampled, full):
        together = problem.stochastic_gradient(x, Row(SEED, replica, worker, draw))
        alone = [problem.stochastic_gradient(one, row) for one, row in zip(x, rows, strict=True)]
        np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "split"), [("softmax", "one_class"), ("logistic", "dirichlet"), ("least_squares", "iid")]
)
def test_stochastic_gradients_are_unbiased_for_the_share_and_not_for_the_whole(name: str, split: str) -> None:
    problem, worker = divided(name, split, batch=2), 6
    x, draws = point(problem), np.arange(4000)
    own = problem.model_copy(update={"batch": None}).stochastic_gradient(x, Row(SEED, 0, worker, 0))
    apart = problem.gradient(x) - own
    drawn = problem.stochastic_gradient(np.broadcast_to(x, (4000, x.size)), Row(SEED, 0, worker, draws))
    along = (drawn - own) @ apart / np.linalg.norm(apart)
    error = along.std() / np.sqrt(draws.size)
    assert abs(along.mean()) < 3.3 * error
    assert np.linalg.norm(apart) > 10 * error  # the whole gradient would not have passed


def test_draws_are_uniform_over_the_share() -> None:
    problem = divided("softmax", "one_class", batch=20)
    drawn = problem.chosen(Row(SEED, 0, 2, np.arange(1000)), 20)
    mine = problem.held.of(2)
    counts = np.bincount(np.searchsorted(mine, drawn.ravel()), minlength=mine.size)
    assert stats.chisquare(counts).pvalue > 0.001
    assert stats.chisquare(np.bincount((np.arange(20_000) ** 2) % mine.size, minlength=mine.size)).pvalue < 1e-6


def test_without_shares_nothing_has_changed() -> None:
    """Draws from the whole data set are those of a version without shares: the address alone decides."""
    from asyncsim import streams

    problem = divided("softmax", "iid", batch=4).shared_out(None)
    expected = streams.integers(SEED, 1, 2, 3, streams.SAMPLE, 4, 1797)
    np.testing.assert_array_equal(problem.chosen(Row(SEED, 1, 2, 3), 4), expected)


def test_a_problem_takes_its_shares_along_and_not_the_lists() -> None:
    problem = divided("softmax", "dirichlet", batch=4)
    row, x = Row(SEED, 0, 3, 1), point(problem)
    expected = problem.stochastic_gradient(x, row)
    sent = pickle.dumps(problem)
    assert len(sent) < 2000
    for other in (pickle.loads(sent), problem.model_copy(), problem.shared_out(None).shared_out(problem.shares)):
        assert other == problem
        np.testing.assert_array_equal(other.stochastic_gradient(x, row), expected)
    assert problem.model_copy(update={"batch": 5}).shares == problem.shares
    assert problem.shared_out(None) != problem
    assert "shares" not in str(problem.model_dump())


# --- scenarios -------------------------------------------------------------------------------------------------------


def scenario(
    split: str, problem: str = "softmax", *, workers: int = 10, source: str = "simulate", **run: Any
) -> Scenario:
    """Return a scenario with two groups of workers that hold shares."""
    groups = [
        {"count": count, "service": {"law": "exponential", "mean": 0.001}, "data": SPLITS[split]}
        for count in (1, workers - 1)
    ]
    return build(
        {
            "seed": SEED,
            "cluster": {"workers": groups},
            "problem": {**PROBLEMS[problem], "batch": 4},
            "method": {"kind": "sgd", "step": 0.1},
            "run": {"updates": 60, "source": source, **run},
        }
    )


@pytest.mark.parametrize("split", SPLITS)
def test_a_scenario_divides_the_data_of_its_problem(split: str) -> None:
    found = scenario(split)
    assert found.problem.shares == Shares(**SPLITS[split], workers=10, seed=SEED)
    assert build(found.resolved()).problem == found.problem
    assert found.model_copy(update={"seed": 3}).problem.shares.seed == 3
    plain = Scenario.model_validate({**found._given(), "cluster": None, "run": {"source": "synthetic", "updates": 9,
                                    "staleness": {"law": "constant", "value": 1}}})  # fmt: skip
    assert plain.problem.shares is None
    assert found.problem.shares is not None


def test_one_number_decides_who_holds_what() -> None:
    assert scenario("dirichlet").sha256() != scenario("iid").sha256()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("batch", [4, None])
def test_replicas_replay_together_and_alone(split: str, batch: int | None) -> None:
    found = scenario(split, "logistic", replicas=3)
    problem = found.problem.model_copy(update={"batch": batch})
    trace = asyncsim.simulate(found)
    together = asyncsim.replay(trace, found.method, problem).final_iterates
    for replica in range(3):
        mine = {name: trace[name][trace["replica"] == replica] for name in trace.columns}
        one = Trace(mine, seed=SEED, workers=10, updates=[60], replicas=[replica])
        alone = asyncsim.replay(one, found.method, problem).final_iterates[0]
        np.testing.assert_allclose(alone, together[replica], rtol=1e-9, atol=1e-13)
    undivided = asyncsim.replay(trace, found.method, problem.shared_out(None)).final_iterates
    assert np.abs(undivided - together).max() > 1e-3


@pytest.mark.parametrize(("backend", "split"), [("threads", "iid"), ("threads", "one_class"), ("queue", "dirichlet")])
def test_real_workers_draw_from_their_shares(backend: str, split: str) -> None:
    """A replay gives the same bits, which a problem without shares does not."""
    recorded = scenario(split, "logistic", workers=2, source="record", backend=backend)
    recording = asyncsim.record(recorded)
    again = asyncsim.replay(recording.trace, recorded.method, recorded.problem)
    assert again.final_iterates.tobytes() == recording.final_iterates.tobytes()
    other = asyncsim.replay(recording.trace, recorded.method, recorded.problem.shared_out(None))
    assert other.final_iterates.tobytes() != recording.final_iterates.tobytes()


def test_a_trace_of_other_workers_is_refused() -> None:
    trace = asyncsim.simulate(scenario("iid", workers=4))
    found = scenario("iid", workers=5)
    with pytest.raises(ScenarioError, match="the data are divided among 5 workers, and the trace has 4"):
        asyncsim.replay(trace, found.method, found.problem)


def test_workers_of_one_class_pull_the_model_apart_from_the_optimum_of_unequal_shares() -> None:
    """Σ (n_w/n) ∇f_w = 0 at the minimiser of f, where workers' gradients have mean 0 only if n_w are equal."""
    problem = Softmax(dataset="breast_cancer", l2=0.1).shared_out(Shares(split="one_class", workers=2, seed=SEED))
    best = problem.minimizer
    own = np.array([problem.stochastic_gradient(best, Row(SEED, 0, worker, 0)) for worker in (0, 1)])
    assert np.linalg.norm(problem.held.sizes @ own) / 569 < 1e-9
    assert np.linalg.norm(own.mean(axis=0)) > 1e-3
    even = LeastSquares(samples=90, dimension=5, noise=1.0).shared_out(Shares(split="iid", workers=9, seed=SEED))
    own = np.array([even.stochastic_gradient(even.minimizer, Row(SEED, 0, worker, 0)) for worker in range(9)])
    assert np.linalg.norm(own.mean(axis=0)) < 1e-12


LINES = {
    "iid": "data: iid, 179–180 samples a worker",
    "one_class": "data: one class each, 174–183 samples a worker",
    "dirichlet": "data: Dirichlet(0.3) per class, ",
}


@pytest.mark.parametrize("split", SPLITS)
def test_shares_are_reported(split: str) -> None:
    run = asyncsim.run(scenario(split))
    data = run.summary["data"]
    assert data["split"] == split
    assert data.get("alpha") == SPLITS[split].get("alpha")
    assert np.sum(data["classes"], axis=1).tolist() == data["samples"]
    assert np.sum(data["classes"], axis=0).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    (line,) = [line for line in summary_lines(run.summary) if line.startswith("data")]
    assert line.startswith(LINES[split])
    assert np.count_nonzero(data["classes"]) == 10 or split != "one_class"


def test_a_problem_without_classes_reports_sizes() -> None:
    run = asyncsim.run(scenario("iid", "least_squares_made_up"))
    assert run.summary["data"] == {"split": "iid", "samples": [9] * 10}
    assert "data: iid, 9 samples a worker" in summary_lines(run.summary)
    assert "data" not in asyncsim.run(build({**scenario("iid").resolved(), "cluster": {"workers": [
        {"service": {"law": "constant", "value": 1.0}}]}})).summary  # fmt: skip


def test_the_picture_of_the_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"worker": [0, 0, 1, 1, 2, 2], "class": [0, 1] * 3, "samples": [5, 0, 1, 4, 2, 2]})
    _, ax = plots.new_figure()
    assert plots.shares(ax, frame) is ax
    tops = [patch.get_data().values.tolist() for patch in ax.patches]
    assert tops == [[5, 1, 2], [5, 5, 4]]
    with pytest.raises(ValueError, match="shares: the frame has no column 'samples'"):
        plots.shares(ax, frame.drop(columns="samples"))
    monkeypatch.setattr(pictures, "_draw", lambda chosen, folder, title: dict(chosen))
    run = asyncsim.run(scenario("dirichlet"))
    _, ax = plots.new_figure()
    pictures.draw_run(run, tmp_path)["data"](ax)  # type: ignore[call-overload]
    assert ax.patches[-1].get_data().values.tolist() == run.summary["data"]["samples"]
    assert "data" not in pictures.draw_run(asyncsim.run(scenario("iid", "least_squares_made_up")), tmp_path)
