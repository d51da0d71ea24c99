"""Calibration: known clusters are found again, and what does not hold is said."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import asyncsim
from asyncsim import Trace, TraceError, calibrate, cli, streams
from asyncsim.calibration import delays
from asyncsim.calibration.laws import CANDIDATES, candidates, distance, fit_law, kolmogorov_quantile
from asyncsim.calibration.predictions import staleness_shares, total_variation
from asyncsim.calibration.workers import inflation, pool
from asyncsim.durations import (
    Constant,
    Empirical,
    Exponential,
    Gamma,
    Law,
    LogNormal,
    Mixture,
    Pareto,
    ShiftedExponential,
    Uniform,
    Weibull,
)
from asyncsim.results import write_trace
from asyncsim.scenario import build, load
from asyncsim.trace import TIMES

FAST_AND_SLOW = Mixture(weights=(0.9, 0.1), laws=(Exponential(mean=1.0), Exponential(mean=20.0)))
STEADY_WITH_STRAGGLERS = Mixture(weights=(0.9, 0.1), laws=(Gamma(shape=50.0, mean=1.0), Gamma(shape=20.0, mean=3.0)))
THREE_KINDS = Mixture(
    weights=(0.5, 0.3, 0.2), laws=(Constant(value=1.0), Uniform(low=3.0, high=3.5), Exponential(mean=20.0))
)


def sample(law: Law, size: int, *, worker: int = 0, seed: int = 7) -> np.ndarray:
    return law.sample(seed, 0, worker, 0, size=size, purpose=streams.SERVICE)


def simulated(
    *groups: tuple[int, Law], updates: int = 8000, seed: int = 3, replicas: int = 1, **cluster: dict
) -> Trace:
    workers = [{"count": count, "service": law} for count, law in groups]
    run = {"updates": updates}
    return asyncsim.simulate(build({"seed": seed, "cluster": {"workers": workers, **cluster}, "run": run}))


# --- laws: the family and its parameters are found again

#: A law, and how far its parameters may be off (relative; four standard errors or more at 3000 durations).
KNOWN = [
    (Constant(value=0.003), {"value": 1e-6}),
    (Exponential(mean=2.0), {"mean": 0.08}),
    (ShiftedExponential(shift=1.0, mean=3.0), {"shift": 0.005, "mean": 0.06}),
    (Gamma(shape=0.5, mean=2.0), {"shape": 0.10, "mean": 0.11}),
    (Gamma(shape=30.0, mean=2e-3), {"shape": 0.11, "mean": 0.014}),
    (LogNormal(mean=2.0, sigma=0.5), {"sigma": 0.06, "mean": 0.04}),
    (Pareto(shape=2.5, mean=1.0), {"shape": 0.08, "mean": 0.06}),
    (Weibull(shape=0.7, mean=3.0), {"shape": 0.06, "mean": 0.11}),
    (Uniform(low=1.0, high=2.0), {"low": 0.005, "high": 0.005}),
]


@pytest.mark.parametrize(("law", "bands"), KNOWN, ids=lambda value: getattr(value, "law", ""))
def test_a_law_is_found_again(law: Law, bands: dict[str, float]) -> None:
    fit = fit_law(sample(law, 3000))
    assert fit.name == law.law
    assert fit.distance < fit.noise
    for name, band in bands.items():
        assert getattr(fit.law, name) == pytest.approx(getattr(law, name), rel=band), name


@pytest.mark.parametrize("law", [FAST_AND_SLOW, STEADY_WITH_STRAGGLERS])
def test_a_mixture_is_found_again(law: Mixture) -> None:
    fit = fit_law(sample(law, 3000))
    assert fit.name == f"mixture ({law.laws[0].law})"
    assert fit.law.weights[1] == pytest.approx(0.1, abs=0.02)
    for found, known in zip(fit.law.laws, law.laws, strict=True):
        assert found.mean == pytest.approx(known.mean, rel=0.25)


def test_units_do_not_matter() -> None:
    times = sample(Gamma(shape=4.0, mean=1.0), 2000)
    fits = [fit_law(times * unit) for unit in (1e-9, 1.0, 1e6)]
    assert {fit.name for fit in fits} == {"gamma"}
    shapes = [fit.law.shape for fit in fits]
    assert shapes == pytest.approx([shapes[1]] * 3, rel=1e-6)


@pytest.mark.parametrize("law", [THREE_KINDS, Mixture(weights=(1.0, 1.0), laws=(Constant(value=1), Constant(value=2)))])
def test_no_named_law_where_none_fits(law: Law) -> None:
    times = sample(law, 3000)
    fit = fit_law(times)
    assert fit.name == "empirical"
    assert fit.law.mean == pytest.approx(times.mean(), rel=1e-7)
    assert fit.law.sorted_values == pytest.approx(np.sort(times), rel=1e-7)
    assert min(found.distance for found in candidates(times)) > 0.02  # … and that is why


def test_a_long_sample_is_thinned_without_changing_its_mean() -> None:
    times = sample(THREE_KINDS, 40_000)
    fit = fit_law(times)
    assert len(fit.law.values) == 10_000
    assert fit.law.mean == pytest.approx(times.mean(), rel=1e-7)


def test_the_level_of_the_test_allows_for_fitted_parameters() -> None:
    """5 % of true laws are rejected at 5 %: fitted to half the sample; next to none fitted to all of it."""
    critical = kolmogorov_quantile(0.05) / np.sqrt(200)
    _, fit = CANDIDATES["gamma"]
    samples = [sample(Gamma(shape=2.0, mean=1.0), 200, seed=seed) for seed in range(600)]
    halves = np.mean([distance(fit(x[::2] / x[::2].mean()), x / x[::2].mean()) > critical for x in samples])
    wholes = np.mean([distance(fit(x / x.mean()), x / x.mean()) > critical for x in samples])
    assert 0.02 < halves < 0.09
    assert wholes < 0.01


def test_steady_times_are_not_called_exponential() -> None:
    fits = {fit.name: fit for fit in candidates(sample(Gamma(shape=3.0, mean=1.0), 1000))}
    assert fits["exponential"].distance > 2 * fits["exponential"].noise
    assert fits["gamma"].bic < fits["exponential"].bic - 100


# --- workers: alike ones are pooled, others are not

ONE, SLOWER = Exponential(mean=1.0), Exponential(mean=1.3)
GROUPS: list[tuple[list[Law], list[list[int]]]] = [
    ([ONE] * 8, [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ([ONE, SLOWER] * 4, [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ([ONE] * 3 + [Gamma(shape=2.0, mean=1.0)] * 3, [[0, 1, 2], [3, 4, 5]]),  # the same mean
    ([Constant(value=1.0), Constant(value=1.3), Constant(value=1.0)], [[0, 2], [1]]),
    ([ONE], [[0]]),
]


@pytest.mark.parametrize(("laws", "groups"), GROUPS)
def test_workers_are_pooled_where_they_are_alike(laws: list[Law], groups: list[list[int]]) -> None:
    assert pool([sample(law, 1000, worker=worker) for worker, law in enumerate(laws)]) == groups


def test_equal_workers_are_rarely_told_apart() -> None:
    """At a level of 1 %: at most 5 of 150, which 1 % gives once in 1000 times."""
    wrong = [len(pool([sample(ONE, 100, worker=w, seed=seed) for w in range(4)])) > 1 for seed in range(150)]
    assert sum(wrong) <= 5


def test_correlated_times_count_for_less() -> None:
    """An autoregression of coefficient φ has (1 + φ)/(1 − φ) durations per independent one."""
    noise = np.random.default_rng(1).normal(size=100_000)
    times = np.empty_like(noise)
    last = 0.0
    for place, value in enumerate(noise):
        last = times[place] = 0.8 * last + value
    assert inflation(times) == pytest.approx(9.0, rel=0.15)
    assert inflation(noise) == pytest.approx(1.0, abs=0.05)
    assert inflation(np.ones(100)) == 1.0


# --- clusters


def test_groups_that_interleave_are_put_one_after_the_other() -> None:
    trace = simulated((2, ONE), (2, SLOWER), (2, ONE))
    found = calibrate(trace)
    assert [group.count for group in found.cluster.workers] == [4, 2]
    assert found.order == (0, 1, 4, 5, 2, 3)
    assert [group.service.law for group in found.cluster.workers] == ["exponential"] * 2
    assert [group.service.mean for group in found.cluster.workers] == pytest.approx([1.0, 1.3], rel=0.06)


def test_server_and_links_are_found_again() -> None:
    latency = {"law": "gamma", "shape": 2.0, "mean": 0.02}
    server = {"service": {"law": "exponential", "mean": 0.05}}
    found = calibrate(simulated((4, Gamma(shape=5.0, mean=1.0)), server=server, network={"latency": latency}))
    assert found.cluster.server.service.law == "exponential"
    assert found.cluster.server.service.mean == pytest.approx(0.05, rel=0.05)
    assert found.cluster.network is not None
    assert found.cluster.network.latency.law == "gamma"
    assert found.cluster.network.latency.mean == pytest.approx(0.02, rel=0.05)
    assert verdicts(found)["workers do not contend for cores"] == "holds"
    assert verdicts(found)["all of this together gives the throughput"] == "holds"
    assert verdicts(found)["all of this together gives the staleness"] == "holds"


def test_what_takes_no_time_is_left_out_and_said() -> None:
    latency = {"law": "constant", "value": 1e-4}
    found = calibrate(simulated((4, Gamma(shape=5.0, mean=1.0)), network={"latency": latency}))
    assert found.cluster.network is None
    assert found.cluster.server.service == Constant(value=0.0)
    assert any("messages take 0.02% of a worker's cycle" in note for note in found.notes)


@pytest.mark.parametrize("reply", ["after_apply", "before_apply"])
@pytest.mark.parametrize("timed", [True, False])
def test_the_server_s_reply_is_seen(reply: str, timed: bool, quick: None) -> None:
    trace = simulated((4, Gamma(shape=5.0, mean=1.0)), server={"reply": reply}, updates=2000)
    if not timed:
        trace = without_times(trace)
    assert calibrate(trace).cluster.server.reply == reply


def test_time_between_an_update_and_the_next_read_counts_as_service() -> None:
    start = 1.25 * np.arange(200)
    moments = dict(zip(TIMES, (start, start, start + 1, start + 1, start + 1), strict=True))
    nothing = dict.fromkeys(("replica", "worker", "status"), np.zeros(200, dtype=int))
    columns = moments | nothing | dict.fromkeys(("draw", "read_version", "update"), np.arange(200))
    found = calibrate(Trace(columns, seed=0, workers=1, updates=[200]), warmup=1)
    assert found.cluster.workers[0].service == Constant(value=1.25)
    assert "20% of its cycle" in figure(found, "a worker reads as soon as its update is made")


def verdicts(found: asyncsim.calibration.Calibration) -> dict[str, str]:
    return {assumption.name: assumption.verdict for assumption in found.assumptions}


def figure(found: asyncsim.calibration.Calibration, name: str) -> str:
    return next(assumption.figure for assumption in found.assumptions if assumption.name == name)


# --- assumptions: a loop with flaws that no scenario has


def flawed(service: Callable[[float, int, float], float], *, updates: int = 6000, workers: int = 4) -> Trace:
    """An asynchronous run whose workers rest between update and read; service(time, computing, last) is a time."""
    uniforms = streams.uniforms(1, 0, np.arange(workers)[:, None], np.arange(updates)[None], streams.NOISE, 1)[..., 0]
    rows: list[tuple[float, ...]] = []
    draws, last = [0] * workers, [1.0] * workers
    events = [(0.0, 0, worker, 0.0, 0) for worker in range(workers)]  # (time, kind, worker, start, version)
    computing = 0
    while len(rows) < updates:
        time, kind, worker, start, version = heapq.heappop(events)
        if kind == 0:
            computing += 1
            last[worker] = service(time, computing, last[worker])
            heapq.heappush(events, (time + last[worker], 1, worker, time, len(rows)))
        else:
            computing -= 1
            rows.append((worker, draws[worker], version, len(rows), start, start, time, time, time))
            rest = -0.5 * np.log(uniforms[worker, draws[worker]])
            draws[worker] += 1
            heapq.heappush(events, (time + rest, 0, worker, 0.0, 0))
    table = np.array(rows)
    columns = dict(zip(("worker", "draw", "read_version", "update"), table[:, :4].T.astype(int), strict=True))
    columns |= {name: np.zeros(updates, dtype=int) for name in ("replica", "status")}
    return Trace(columns | dict(zip(TIMES, table[:, 4:].T, strict=True)), seed=0, workers=workers, updates=[updates])


class Noise:
    """Exponential numbers one after the other."""

    def __init__(self) -> None:
        self.numbers = iter(sample(ONE, 20_000, worker=9))

    def __call__(self) -> float:
        return float(next(self.numbers))


FLAWS: dict[str, tuple[str | None, Callable[[Noise], Callable[[float, int, float], float]]]] = {
    "none": (None, lambda noise: lambda time, computing, last: 0.5 + noise()),
    "contention": (
        "workers do not contend for cores",
        lambda noise: lambda time, computing, last: (0.5 + noise()) * (1 + 0.2 * (computing - 1)),
    ),
    "drift": ("nothing drifts", lambda noise: lambda time, computing, last: (0.5 + noise()) * (1 + time / 5000)),
    "memory": (
        "service times are independent",
        lambda noise: lambda time, computing, last: 0.5 * last + 0.5 * (0.5 + noise()),
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_does_not_hold_is_said(flaw: str) -> None:
    name, service = FLAWS[flaw]
    found = calibrate(flawed(service(Noise())))
    for judged in ("workers do not contend for cores", "nothing drifts", "service times are independent"):
        expected = "does not hold" if judged == name else "holds"
        assert verdicts(found)[judged] == expected, figure(found, judged)
    warned = [judged for judged in verdicts(found) if any(judged in warning for warning in found.warnings)]
    # These workers rest with no model in hand, which counts as service time: the throughput is right, staleness is not.
    assert set(warned) == {name, "all of this together gives the staleness"} - {None}


def test_contention_is_measured() -> None:
    said = figure(calibrate(flawed(FLAWS["contention"][1](Noise()))), "workers do not contend for cores")
    assert 0.10 < float(said.partition("%")[0]) / 100 < 0.17  # 0.2 of a lone worker's time, 0.14 of the mean


def test_contention_cannot_be_told_where_all_compute_all_the_time() -> None:
    """Not even at the end, where those still computing have no row and the times that are known are short ones."""
    found = calibrate(simulated((16, ONE), updates=2000))
    assert figure(found, "workers do not contend for cores") == "always 16 workers compute at a time"
    assert verdicts(found)["workers do not contend for cores"] == "cannot be told"


# --- there and back

CLUSTERS = {
    "two groups": (((3, Gamma(shape=4.0, mean=1.0)), (2, LogNormal(mean=2.0, sigma=0.8))), {}),
    "no named law": (((4, THREE_KINDS),), {}),
    "server and network": (
        ((4, Uniform(low=0.5, high=1.5)),),
        {
            "server": {"service": {"law": "exponential", "mean": 0.1}},
            "network": {"latency": {"law": "gamma", "shape": 2.0, "mean": 0.1}},
        },
    ),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_scenario_of_the_calibrated_cluster_behaves_alike(name: str, tmp_path: Path) -> None:
    groups, rest = CLUSTERS[name]
    trace = simulated(*groups, updates=20_000, **rest)
    found = calibrate(trace, time_unit="ms")
    found.write(tmp_path / "cluster.toml")
    (tmp_path / "again.toml").write_text('extends = "cluster.toml"\nseed = 8\nrun.updates = 20_000\n')
    scenario = load(tmp_path / "again.toml")
    assert scenario.cluster is not None
    assert scenario.cluster.time_unit == "ms"
    assert [group.count for group in scenario.cluster.workers] == [group.count for group in found.cluster.workers]
    again = asyncsim.simulate(scenario)
    assert off(trace, again) < 0.02
    assert float(again.update_times(0)[-1]) == pytest.approx(float(trace.update_times(0)[-1]), rel=0.03)
    # … and a cluster of exponential workers with the right means does not.
    exponential = [(group.count, Exponential(mean=group.service.mean)) for group in found.cluster.workers]
    assert off(trace, simulated(*exponential, updates=20_000)) > 0.04


def off(a: Trace, b: Trace) -> float:
    return total_variation(*(staleness_shares(trace.staleness(warmup=100)) for trace in (a, b)))


def test_files_are_named_where_they_are(tmp_path: Path) -> None:
    found = calibrate(simulated((2, THREE_KINDS), updates=2000))
    written = found.write(tmp_path / "office.toml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["office.toml", "office.workers_0.csv"]
    assert {path.name for path in written} == {"office.toml", "office.workers_0.csv"}
    law = Empirical(file=str(tmp_path / "office.workers_0.csv"), column="duration")
    assert law.sorted_values.tolist() == found.cluster.workers[0].service.sorted_values.tolist()


# --- staleness alone


def without_times(trace: Trace) -> Trace:
    names = [name for name in trace.columns if name not in TIMES]
    columns = {name: trace[name] for name in names}
    order = np.argsort(columns["update"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    return Trace(columns, seed=0, workers=trace.workers, updates=trace.updates)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delays, "TRIED", 10_000)
    monkeypatch.setattr(delays, "REPORTED", 20_000)
    monkeypatch.setattr(delays, "NOISE_REPLICAS", 20)
    monkeypatch.setattr(delays, "MIXTURE_TRIES", 50)


def test_a_service_law_is_found_from_delays(tmp_path: Path, quick: None) -> None:
    file = tmp_path / "delays.csv"
    np.savetxt(file, simulated((8, Gamma(shape=30.0, mean=1.0)), updates=3000).staleness())
    found = calibrate(file)
    assert found.cluster.size == 8
    law = found.cluster.workers[0].service
    assert 1 / law.variance == pytest.approx(30.0, rel=0.25)  # what a gamma law calls its shape
    assert found.parts[0].distance < 0.03
    assert verdicts(found)["alike, independent workers give this staleness"] == "holds"
    exponential = next(part for part in found.parts if part.law.law == "exponential")
    assert exponential.distance > 0.5
    assert found.cluster.time_unit == "mean service time"


def test_the_number_of_workers_is_mean_staleness_plus_one(tmp_path: Path, quick: None) -> None:
    file = tmp_path / "delays.csv"
    delay = simulated((5, Gamma(shape=4.0, mean=1.0)), updates=1000).staleness()
    delay[-1] = delay[-2] + 1  # two reads of one version: who read it cannot be told
    np.savetxt(file, delay)
    assert calibrate(file).cluster.size == 5
    assert calibrate(file, workers=6).cluster.size == 6


def test_stragglers_need_a_mixture(quick: None) -> None:
    steady, late = Gamma(shape=50.0, mean=0.85), Gamma(shape=10.0, mean=5.0)
    trace = without_times(simulated((8, Mixture(weights=(0.96, 0.04), laws=(steady, late))), updates=6000))
    found = calibrate(trace)
    assert found.parts[0].law.law == "mixture"
    assert found.parts[0].distance < 0.05
    assert min(part.distance for part in found.parts[1:]) > 0.08


# --- bad input, the command


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    trace = simulated((30, ONE), updates=100)
    with pytest.raises(TraceError, match="no worker has 20 service times"):
        calibrate(trace)
    with pytest.raises(TraceError, match="warmup must leave some of its updates, got 1000"):
        calibrate(trace, warmup=1000)
    with pytest.raises(TraceError, match=r"none\.csv: no such file"):
        calibrate(tmp_path / "none.csv")
    with pytest.raises(TraceError, match="has 30 workers, not workers = 8"):
        calibrate(trace, workers=8)
    with pytest.raises(TraceError, match="--map is for the columns of a table"):
        calibrate(trace, columns={"worker": "rank"})


@pytest.mark.parametrize("updates", [1, 19])
def test_too_few_updates_are_refused(updates: int) -> None:
    with pytest.raises(TraceError, match=f"needs at least 20 updates after a warmup of 0, got {updates}"):
        calibrate(simulated((2, ONE), updates=updates))


def test_a_worker_with_few_times_joins_the_closest() -> None:
    found = calibrate(simulated((3, Constant(value=1.0)), (1, Constant(value=40.0)), updates=900))
    assert [group.count for group in found.cluster.workers] == [4]
    assert any("worker 3 has 7 service times, too few" in note for note in found.notes)


def test_the_command_reports_and_writes(tmp_path: Path) -> None:
    source, out = tmp_path / "trace.parquet", tmp_path / "cluster.toml"
    write_trace(simulated((4, Gamma(shape=4.0, mean=2.0)), updates=3000), source)
    result = CliRunner().invoke(cli.main, ["calibrate", str(source), "-o", str(out), "--warmup", "100"])
    assert result.exit_code == 0
    assert "gamma(shape 4" in result.output
    assert "service times are independent" in result.output
    assert out.read_text() == calibrate(source, warmup=100).toml()


@pytest.mark.parametrize("source", ["none.parquet", "words.csv", "folder"])
def test_the_command_writes_nothing_for_bad_input(source: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "words.csv").write_text("delay\nsoon\n")
    result = CliRunner().invoke(cli.main, ["calibrate", str(tmp_path / source), "-o", str(tmp_path / "cluster.toml")])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert not (tmp_path / "cluster.toml").exists()
    result = CliRunner().invoke(cli.main, ["calibrate", str(tmp_path / source), "-o", str(tmp_path / "folder")])
    assert (result.exit_code, result.output) == (2, f"error: {tmp_path / 'folder'}: its name must end in .toml\n")


def test_a_run_brings_its_warmup_and_unit(tmp_path: Path) -> None:
    cluster = {"time_unit": "ms", "workers": [{"count": 2, "service": {"law": "exponential", "mean": 1.0}}]}
    scenario = build({"cluster": cluster, "run": {"updates": 500, "warmup": 50}})
    run = asyncsim.run(scenario, out=tmp_path / "run")
    found = calibrate(tmp_path / "run")
    assert found.cluster.time_unit == "ms"
    assert sum(part.count for part in found.parts) < len(run.trace) - 40
    assert calibrate(run).cluster == found.cluster
    assert list(found.fits["law"]) == ["exponential"]
    assert set(found.checks) == {"assumption", "verdict", "figure"}
