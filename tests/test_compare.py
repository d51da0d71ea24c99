"""Comparing runs: distances, the noise beside them, and where equal schedules part."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import asyncsim
from asyncsim import cli, noise, plots, stored
from asyncsim.compare import AGREES, DIFFERS, NOT_JUDGED, compare
from asyncsim.divergence import first_divergence, first_other_row
from asyncsim.noise import curve_difference, independent_gradients, staleness_counts, trace_differences
from asyncsim.results import ResultsError, write_trace
from asyncsim.scenario import build
from asyncsim.trace import Trace, TraceError

EXPONENTIAL = {"law": "exponential", "mean": 1.0}
SLOW = {"law": "exponential", "mean": 4.0}
STEADY = {"law": "gamma", "shape": 20.0, "mean": 1.0}
STEADIER = {"law": "gamma", "shape": 400.0, "mean": 1.0}

CLUSTERS: dict[str, list[dict[str, Any]]] = {
    "4 exponential": [{"count": 4, "service": EXPONENTIAL}],
    "16 exponential": [{"count": 16, "service": EXPONENTIAL}],
    "4 steady": [{"count": 4, "service": STEADY}],
    "16 steady": [{"count": 16, "service": STEADY}],
    "4 mixed": [{"count": 2, "service": EXPONENTIAL}, {"count": 2, "service": SLOW}],
    "16 mixed": [{"count": 8, "service": EXPONENTIAL}, {"count": 8, "service": SLOW}],
    "4 steadier": [{"count": 4, "service": STEADIER}],
    "5 exponential": [{"count": 5, "service": EXPONENTIAL}],
    "4 exponential, 10 % slower": [{"count": 4, "service": {"law": "exponential", "mean": 1.1}}],
}
JUDGED = list(CLUSTERS)[:6]
QUANTITIES = ("total_variation", "kolmogorov_smirnov", "shares", "throughput")
PAIRS = 120
WARMUP = 200


@pytest.fixture(autouse=True)
def fewer_dealings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the dealings: the level stays exact, the band varies a little more."""
    monkeypatch.setattr(noise, "DEALINGS", 399)


def trace_of(cluster: str, seed: int, *, updates: int = 1000, replicas: int = 1) -> Trace:
    run = {"updates": updates, "replicas": replicas}
    return asyncsim.simulate(build({"seed": seed, "cluster": {"workers": CLUSTERS[cluster]}, "run": run}))


# --- the noise ----------------------------------------------------------------------------------------------------


@functools.cache
def alarms(cluster: str, other: str, pairs: int, updates: int = 1000, blocks: int = noise.BLOCKS) -> dict[str, float]:
    """Return the share of pairs of independent runs that are beyond the 95 % band, for each quantity."""
    beyond = dict.fromkeys(QUANTITIES, 0)
    for pair in range(pairs):
        a, b = (trace_of(name, 2 * pair + side, updates=updates) for side, name in enumerate((cluster, other)))
        for name, difference in trace_differences(a, b, warmup=WARMUP, blocks=blocks).items():
            beyond[name] += difference.distance > difference.band(0.95) + noise.ROUNDING
    return {name: count / pairs for name, count in beyond.items()}


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_false_alarms_are_five_percent(quantity: str) -> None:
    # A single cluster: of 120 pairs, 13 % are beyond with probability 4e-4. All six together: 5 ± 2.4 % (three
    # standard deviations). Steady workers divide the updates more evenly than blocks show, whose ends count: there the
    # band of shares and throughput errs on the wide side.
    share = [alarms(cluster, cluster, PAIRS)[quantity] for cluster in JUDGED]
    assert max(share) <= 0.13
    lowest = 0.026 if quantity in ("total_variation", "kolmogorov_smirnov") else 0.01
    assert lowest <= np.mean(share) <= 0.074


def test_noise_of_independent_gradients_is_too_small() -> None:
    """The companion: blocks of one update, as if staleness had no memory."""
    naive = alarms("4 steadier", "4 steadier", 40, blocks=1000 - WARMUP)
    assert naive["total_variation"] > 0.2
    in_blocks = alarms("4 steadier", "4 steadier", 40, updates=4000)
    assert max(in_blocks.values()) <= 0.15


@pytest.mark.parametrize(
    ("other", "quantity", "updates"),
    [
        ("5 exponential", "total_variation", 1500),
        ("5 exponential", "kolmogorov_smirnov", 1500),
        ("5 exponential", "shares", 1500),
        ("4 exponential, 10 % slower", "throughput", 6000),
    ],
)
def test_a_change_is_seen(other: str, quantity: str, updates: int) -> None:
    assert alarms("4 exponential", other, 40, updates)[quantity] >= 0.9


def test_a_slower_worker_leaves_staleness_as_it_is() -> None:
    """All of them slower: time runs slower, the schedule does not change."""
    assert alarms("4 exponential", "4 exponential, 10 % slower", 40, 6000)["total_variation"] <= 0.2


def test_a_real_difference_does_not_widen_the_band() -> None:
    same = trace_differences(trace_of("4 exponential", 1), trace_of("4 exponential", 2))
    changed = trace_differences(trace_of("4 exponential", 1), trace_of("16 exponential", 2))
    assert changed["throughput"].distance > 2
    # The noise of a rate three times as large in units of the first.
    assert changed["throughput"].band() < 8 * same["throughput"].band()
    assert changed["kolmogorov_smirnov"].band() < 2 * same["kolmogorov_smirnov"].band()


def test_distances_follow_their_definitions() -> None:
    a, b = trace_of("4 mixed", 1), trace_of("5 exponential", 2, updates=1500, replicas=2)
    found = trace_differences(a, b, warmup=100)
    p, q = (np.bincount(x.staleness(warmup=100), minlength=200) / x.staleness(warmup=100).size for x in (a, b))
    assert found["total_variation"].distance == pytest.approx(np.maximum(p - q, 0).sum())
    assert found["kolmogorov_smirnov"].distance == pytest.approx(max(abs(sum(p[:k]) - sum(q[:k])) for k in range(200)))
    times = [x.update_times(r) for x in (a, b) for r in x.replicas]
    rates = 900 / (times[0][-1] - times[0][99]), 2800 / sum(t[-1] - t[99] for t in times[1:])
    assert (found["throughput"].a, found["throughput"].b) == pytest.approx(rates)
    assert found["throughput"].distance == pytest.approx(abs(rates[1] / rates[0] - 1))
    shares = [np.bincount(x["worker"][x["update"] >= 100], minlength=5) for x in (a, b)]
    gaps = np.abs(shares[0] / shares[0].sum() - shares[1] / shares[1].sum())
    assert found["shares"].distance == pytest.approx(gaps.max())
    assert found["shares"].quantity == f"share of worker {gaps.argmax()}"


def test_equal_deterministic_runs_have_no_noise_and_agree() -> None:
    workers = [{"count": 3, "service": {"law": "constant", "value": 0.1}}]
    a, b = (
        asyncsim.simulate(build({"seed": seed, "cluster": {"workers": workers}, "run": {"updates": 500}}))
        for seed in (1, 2)
    )
    comparison = compare(a, b)
    assert comparison.agrees
    assert comparison["staleness: total"].difference == 0


def test_throughput_has_an_interval() -> None:
    # 4 exponential workers make 4 updates per time; of 1800 the rate has the standard deviation 4/√1800.
    found = trace_differences(trace_of("4 exponential", 1, updates=2000), trace_of("4 exponential", 2, updates=2000))
    for value, error in ((found["throughput"].a, found["throughput"].a_error),):
        assert abs(value - 4) < 2 * error
        assert 0.6 < error / (2.13 * 4 / 2000**0.5) < 1.6


def test_staleness_is_counted() -> None:
    trace = trace_of("4 mixed", 1, replicas=2)
    values, counts = staleness_counts(trace, warmup=50)
    expected = np.bincount(trace.staleness(warmup=50))
    assert np.array_equal(np.repeat(values, counts), np.repeat(np.arange(expected.size), expected))


def test_correlated_gradients_are_worth_fewer_independent_ones() -> None:
    synthetic = {"source": "synthetic", "staleness": {"law": "geometric", "mean": 3.0}, "updates": 20_000}
    independent = asyncsim.simulate(build({"cluster": {"workers": CLUSTERS["4 exponential"]}, "run": synthetic}))
    assert 0.7 < independent_gradients(independent) / 20_000 < 1.4
    assert independent_gradients(trace_of("4 steadier", 1, updates=20_000)) < 8_000


# --- curves -------------------------------------------------------------------------------------------------------


def curves_of(seed: int, *, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return random walks of 8 and 8 replicas from a common start: each value is close to the one before."""
    steps = np.random.default_rng(seed).normal(size=(16, 60))
    steps[:, 0] = 0.0
    walks = 100.0 + steps.cumsum(axis=1)
    walks[8:, 30:] += shift
    return walks[:8], walks[8:]


def test_curves_raise_five_percent_false_alarms() -> None:
    anywhere = pointwise = 0
    for seed in range(150):
        a, b = curves_of(seed)
        difference, place = curve_difference("loss", a, b)
        anywhere += difference.distance > difference.band()
        alone, _ = curve_difference("loss", a[:, [place]], b[:, [place]])
        pointwise += alone.distance > alone.band()
    assert 0.015 <= anywhere / 150 <= 0.1
    assert pointwise / 150 > 0.15  # the companion: as if one had not looked everywhere


def test_a_shift_of_a_curve_is_seen_where_it_is() -> None:
    difference, place = curve_difference("loss", *curves_of(3, shift=25.0))
    assert difference.distance > difference.band(0.99)
    assert 30 <= place < 60
    assert difference.band() < 20


def test_few_replicas_tell_nothing_of_noise() -> None:
    a, b = curves_of(1)
    difference, _ = curve_difference("loss", a[:2], b[:3])
    assert np.isnan(difference.band())
    assert difference.distance == pytest.approx(np.abs(a[:2].mean(axis=0) - b[:3].mean(axis=0)).max())
    assert np.isnan(curve_difference("loss", a[:1], b)[0].a_error)


# --- runs ---------------------------------------------------------------------------------------------------------


def model(**changes: Any) -> asyncsim.Scenario:
    data: dict[str, Any] = {
        "name": "small",
        "seed": 1,
        "cluster": {"workers": [{"count": 4, "service": EXPONENTIAL}]},
        "problem": {"kind": "quadratic", "eigenvalues": [1.0, 4.0], "noise": 0.5},
        "method": {"kind": "sgd", "step": 0.02},
        "run": {"updates": 400, "replicas": 8, "warmup": 40},
        "metrics": {"every": 20, "record": ["loss"]},
    }
    for path, value in changes.items():
        part, _, key = path.partition("__")
        if key:
            data[part] = {**data[part], key: value}
        else:
            data[part] = value
    return build(data)


@functools.cache
def run_of(**changes: Any) -> asyncsim.Run:
    return asyncsim.run(model(**changes))


def test_a_run_agrees_with_itself_to_the_bit() -> None:
    found = compare(run_of(), run_of())
    assert found.agrees
    assert found.same_schedule
    assert found.parted is None
    assert found.settings == ()
    assert {row.verdict for row in found.rows if not np.isnan(row.noise)} == {AGREES}
    assert found["final iterates"].verdict == AGREES
    assert found.warmup == 40


def test_another_seed_agrees() -> None:
    found = compare(run_of(), run_of(seed=2))
    assert found.agrees
    assert not found.same_schedule
    assert found.settings == (("seed", 1, 2),)
    assert found["loss"].verdict == AGREES
    assert len(found.table) == len(found.rows)


@pytest.mark.parametrize(
    ("changes", "path", "update"),
    [
        ({"method__step": 0.03}, "method.step", 0),
        ({"method__momentum": 0.5}, "method.momentum", 1),  # the first update has no earlier step to go on with
        ({"problem__noise": 0.4}, "problem.noise", 0),
    ],
)
def test_models_of_one_schedule_part(changes: dict[str, Any], path: str, update: int) -> None:
    found = compare(run_of(), run_of(**changes))
    assert found.same_schedule
    assert found.parted == (0, update)
    assert path in {setting for setting, _, _ in found.settings}
    assert found["final iterates"].verdict == NOT_JUDGED  # it is meant to differ
    assert found["staleness: total"].difference == 0


def test_a_faster_method_shows_in_the_loss() -> None:
    found = compare(run_of(), run_of(seed=2, method__step=0.04))
    assert not found.agrees
    assert [row.quantity.split()[0] for row in found.rows if row.verdict == DIFFERS] == ["loss"]


def test_a_run_that_is_not_what_its_replay_gives() -> None:
    final = run_of().final_iterates.copy()
    final[0, 0] = np.nextafter(final[0, 0], np.inf)
    found = compare(run_of(), dataclasses.replace(run_of(), final_iterates=final))
    assert not found.agrees
    assert found["final iterates"].verdict == DIFFERS
    assert found.parted is None
    assert any("one is not what its replay gives" in note for note in found.notes)


def test_the_first_divergence_is_that_of_a_full_replay() -> None:
    short = {"run": {"updates": 60, "replicas": 2}}
    a, b = (
        asyncsim.run(model(**short, method=method), record_iterates=True)
        for method in ({"kind": "sgd", "step": 0.02}, {"kind": "sgd", "step": 0.02, "momentum": 1e-13})
    )
    assert a.iterates is not None
    assert b.iterates is not None
    versions = np.flatnonzero((a.iterates[0] != b.iterates[0]).any(axis=-1))
    assert first_divergence(a, b) == (0, versions[0] - 1)
    assert first_divergence(a, a) is None
    assert first_divergence(a, dataclasses.replace(b, scenario=None)) is None


def test_both_diverged_alike() -> None:
    explosive = {"method": {"kind": "sgd", "step": 40.0}, "run": {"updates": 400, "replicas": 1}}
    run = asyncsim.run(model(**explosive))
    assert run.diverged
    assert first_divergence(run, run) is None


def test_schedules_of_one_seed_say_where_they_part() -> None:
    longer = trace_of("4 exponential", 1, updates=1200)
    assert first_other_row(trace_of("4 exponential", 1), longer) == 1000
    slower = trace_of("4 steady", 1)
    row = first_other_row(longer, slower)
    assert row is not None
    names = ("worker", "draw", "read_version", "update")
    assert any(longer[name][row] != slower[name][row] for name in names)
    assert all(np.array_equal(longer[name][:row], slower[name][:row]) for name in names)
    assert f"the schedules, of one seed, part at row {row}, in replica 0" in compare(longer, slower).notes


# --- what is given ------------------------------------------------------------------------------------------------


def test_everything_that_has_a_trace_can_be_compared(tmp_path: Path) -> None:
    trace = trace_of("4 exponential", 1)
    write_trace(trace, tmp_path / "trace.parquet")
    asyncsim.run(model(), tmp_path / "run")

    @dataclasses.dataclass
    class Recording:
        trace: Trace
        final_iterates: np.ndarray

    given = [trace, tmp_path / "trace.parquet", str(tmp_path / "run"), run_of(), Recording(trace, np.zeros((1, 2)))]
    for source in given:
        found = compare(trace, source)
        assert found.agrees
        assert found.warmup == 40  # 10 rounds of 4 workers where there is no scenario
    assert compare(trace, given[1]).same_schedule
    assert compare(str(tmp_path / "run"), run_of())["final iterates"].verdict == AGREES


def test_a_trace_that_stays_in_its_file_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (trace_of("4 mixed", seed, replicas=2) for seed in (1, 2))
    monkeypatch.setattr(stored, "ROW_GROUP", 300)
    write_trace(a, tmp_path / "a.parquet")
    kept = stored.StoredTrace(tmp_path / "a.parquet")
    assert sum(1 for _ in kept.parts("draw")) > 1
    held, read = (trace_differences(one, b, warmup=100) for one in (a, kept))
    assert [vars(one) | {"chance": one.chance.tolist()} for one in held.values()] == [
        vars(one) | {"chance": one.chance.tolist()} for one in read.values()
    ]
    assert first_other_row(a, kept) is None
    assert first_other_row(kept, b) == first_other_row(a, b)
    assert first_other_row(kept, trace_of("4 mixed", 1)) == 1000


def test_what_cannot_be_compared_is_said() -> None:
    synthetic = {"source": "synthetic", "staleness": {"law": "geometric", "mean": 3.0}, "updates": 1000}
    timeless = asyncsim.simulate(build({"cluster": {"workers": CLUSTERS["4 exponential"]}, "run": synthetic}))
    found = compare(run_of(), timeless)
    assert "throughput not compared: a trace has no times" in found.notes
    assert "loss not compared: the two have no metric in common" in found.notes
    with pytest.raises(KeyError, match="no quantity 'throughput'"):
        found["throughput"]
    found = compare(run_of(run__replicas=3), run_of(seed=2, run__replicas=3))
    assert found["loss"].verdict == NOT_JUDGED
    assert any("each run should have at least 6" in note for note in found.notes)


def test_curves_on_a_time_grid() -> None:
    grid = {"metrics": {"at_times": 9, "record": ["loss"]}, "run": {"time": 100.0, "replicas": 8, "warmup": 40}}
    found = compare(asyncsim.run(model(**grid)), asyncsim.run(model(seed=2, **grid)))
    assert found.against == "time"
    assert found["loss at time"].verdict == AGREES


BAD = [
    (lambda path: (path / "none", trace_of("4 exponential", 1)), {}, ResultsError, "no such run directory or trace"),
    (lambda path: (path, trace_of("4 exponential", 1)), {}, ResultsError, "no run directory"),
    (lambda path: (Path(__file__), trace_of("4 exponential", 1)), {}, TraceError, "not a trace written by asyncsim"),
    (lambda path: (trace_of("4 exponential", 1),) * 2, {"warmup": 990}, ResultsError, "10 updates after a warmup of"),
    (lambda path: (trace_of("4 exponential", 1),) * 2, {"tolerance": -1.0}, ResultsError, "not negative; got -1"),
]


@pytest.mark.parametrize(("sources", "options", "error", "message"), BAD)
def test_bad_input_is_named(tmp_path: Path, sources: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        compare(*sources(tmp_path), **options)


# --- tolerance, command line, picture -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerance", "differ"), [(0.5, []), (0.15, ["throughput"]), (0.0, ["staleness", "throughput"])]
)
def test_a_tolerance_takes_the_place_of_noise(tolerance: float, differ: list[str]) -> None:
    a = trace_of("4 exponential", 1, updates=4000)
    b = trace_of("5 exponential", 2, updates=4000)
    found = compare(a, b, tolerance=tolerance)
    verdicts = {row.quantity.split()[0].strip(",:") for row in found.rows if row.verdict == DIFFERS}
    assert verdicts >= set(differ)
    assert found.agrees == (not differ)
    assert found["throughput"].limit == tolerance


def test_a_tolerance_on_loss_is_a_share_of_its_descent() -> None:
    a, b = run_of(), run_of(method__step=0.03)
    curves = [run.metrics.groupby("update")["value"].mean() for run in (a, b)]
    descent = max(curve.max() for curve in curves) - min(curve.min() for curve in curves)
    largest = (curves[0] - curves[1]).abs().max()
    found = compare(a, b, tolerance=0.2)
    assert found["loss"].limit == pytest.approx(0.2 * descent)
    assert found["loss"].difference == pytest.approx(largest)
    assert found["loss"].verdict == (DIFFERS if largest > 0.2 * descent else AGREES)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, ["compare", *(str(argument) for argument in arguments)])


def test_the_command(tmp_path: Path) -> None:
    asyncsim.run(model(), tmp_path / "a")
    asyncsim.run(model(seed=2), tmp_path / "b")
    workers = [{"count": 8, "service": EXPONENTIAL}]
    asyncsim.run(model(cluster={"workers": workers}), tmp_path / "c")
    same = invoke(tmp_path / "a", tmp_path / "b")
    assert same.exit_code == 0
    assert same.stdout.endswith("A and B agree.\n")
    assert "   seed: 1 | 2\n" in same.stdout
    other = invoke(tmp_path / "a", tmp_path / "c", "-o", tmp_path / "picture.png")
    assert other.exit_code == 1
    assert "cluster.workers.0.count: 4 | 8" in other.stdout
    assert "A and B differ: staleness: total variation" in other.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert invoke(tmp_path / "a", tmp_path / "c", "--tolerance", 2).exit_code == 0
    missing = invoke(tmp_path / "a", tmp_path / "d")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert missing.stderr == f"error: {tmp_path / 'd'}: no such run directory or trace\n"
    assert invoke(tmp_path / "a", tmp_path / "b", "--tolerance", -1).exit_code == 2
    jpeg = invoke(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "picture.jpeg")
    assert (jpeg.exit_code, jpeg.stdout) == (2, "")
    assert jpeg.stderr == f"error: {tmp_path / 'picture.jpeg'}: its name must end in .png or .svg or .pdf\n"


def test_a_part_that_only_one_has_is_a_single_setting() -> None:
    bare = build({"cluster": {"workers": CLUSTERS["4 exponential"]}, "run": {"updates": 400}})
    one = compare(run_of(), asyncsim.run(bare))
    settings = {path: (a, b) for path, a, b in one.settings}
    assert (settings["problem"][0]["kind"], settings["problem"][1]) == ("quadratic", None)
    assert "   problem: quadratic | none\n" in str(one)
    assert not [path for path in settings if path.startswith("problem.")]


def test_tails_show_the_share_at_least_so_stale() -> None:
    frame = pd.DataFrame({"staleness": [0, 2, 5], "count": [6, 3, 1], "label": "A"})
    _, ax = plots.new_figure()
    assert plots.staleness_tails(ax, frame) is ax
    values, edges, _ = ax.patches[0].get_data()
    assert values.tolist() == pytest.approx([1.0, 0.4, 0.1])
    assert edges.tolist() == [0.0, 0.5, 2.5, 5.5]
    assert ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="no column 'count'"):
        plots.staleness_tails(ax, frame[["staleness"]])
    with pytest.raises(ValueError, match="no gradient was applied"):
        plots.staleness_tails(ax, frame.assign(count=0))
